-- Ends leased turns.
--
-- KEYS as in conclude.lua
-- ARGV 1 worker  2 result_ttl_ms  3 outcome_ttl_ms  4 keep_stream_ms: how long the result stream of a turn stays whose
--      whole reply is kept with its outcome
--      5 lease_ms
--      then for each item: agent id, turn id, epoch, tokens published, outcome, reason (of a failure, '' otherwise),
--      End in its envelope, transcript entry in its envelope ('': none), the whole reply as one Delta in its envelope
--      ('': long; then the stream stays for result_ttl_ms), turns in a row that the worker may take of the agent while
--      others wait (0: none, it takes no more), the agent's manifest in its envelope ('': the old one stays, unless its
--      history went)
-- Reply now_ms, then for each item
--      {'done'}: ended, now or by the same call before
--      {'next', head}: the same, and the ticket stands for the agent's next turn now, to be leased by this
--       worker at once
--      {'fenced'}: another lease took over, or the turn ended otherwise; nothing was written
--      {'gap', found}: the result stream does not end with the tokens given; nothing was written
--      {'error', reason}: something of this agent cannot be read; nothing was written

local WORKER, RESULT_TTL_MS, OUTCOME_TTL_MS, KEEP_STREAM_MS, LEASE_MS = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local ARGS, ARGS_AN_ITEM = 5, 11
local TURN_FIELDS = {'state', 'epoch', 'attempts', 'new_session', 'deadline_ms'}

-- Whether somebody waits for a worker, besides those of the tenant that wait for a place: an agent with an undelivered ticket, one
-- that is due, or one whose worker is silent for a whole lease.
local function anybody_waits()
  for _, stream in pairs(READY) do
    local pending_tickets = redis.call('XPENDING', stream, GROUP)[1]
    if redis.call('XLEN', stream) > pending_tickets
        or (pending_tickets > 0 and #redis.call('XPENDING', stream, GROUP, 'IDLE', LEASE_MS, '-', '+', '1') > 0) then
      return true
    end
  end
  return redis.call('ZCOUNT', DELAYED, '-inf', whole(NOW)) > 0
end

-- Looked at once a call: to look for a silent worker costs a walk over all tickets that are held.
local anybody

local function others_wait(parked_key)
  if anybody == nil then
    anybody = anybody_waits()
  end
  return anybody or redis.call('EXISTS', parked_key) == 1
end

-- Whether the worker may go on with the agent: within its budget, or while nobody else waits.
local function may_go_on(agent, following, budget, parked_key)
  if budget == 0 or not following then
    return false
  end
  return (tonumber(agent.continues) or 0) < budget or not others_wait(parked_key)
end

-- Repeated after a lost reply: whether this worker still has the ticket it continued with.
local function ended_before(keys, turn, epoch)
  if turn.epoch ~= epoch then
    return {'fenced'}
  end
  local agent, head = read_agent(keys), read_backlog(keys)
  -- Not one that it read since: that would be leased twice.
  local continued = agent.epoch == whole(tonumber(epoch) + 1) and (tonumber(agent.continues) or 0) > 0
  local kept = continued and head and agent.state == 'ready' and agent.ticket and READY[agent.priority]
    and pending(READY[agent.priority], agent.ticket) == WORKER
  return kept and {'next', head.text} or {'done'}
end

local function finish(i)
  local keys, a = item_keys(i), ARGS + i * ARGS_AN_ITEM
  local agent_id, turn_id, epoch, published, outcome = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5]
  local entry, whole_reply = ARGV[a + 8], ARGV[a + 9]
  local turn = fields(keys.turn, TURN_FIELDS)
  if turn.state == 'ended' then
    return ended_before(keys, turn, epoch)
  end
  local agent, head_text, following = read_lease(keys, WORKER, turn_id, epoch)
  if not agent then
    return {'fenced'}
  end
  local last = ask('XREVRANGE', keys.result, '+', '-', 'COUNT', '1')[1]
  -- Nearly always this is the worker's own last entry.
  if not last or last[1] ~= epoch .. '-' .. published then
    local top_epoch, there_are = split_id(last and last[1] or '0-0')
    if top_epoch > tonumber(epoch) then
      return {'fenced'}
    end
    if there_are ~= tonumber(published) then
      return {'gap', there_are}
    end
  end
  -- Of the head, an ending needs no more than this.
  local head = {text = head_text, turn = turn_id, priority = string.match(head_text, '^%S+ (%S+)')}
  if not READY[head.priority] then
    return {'error', 'a backlog holds ' .. head_text .. ', which is no turn'}
  end

  local goes_on = conclude({
    keys = keys, agent = agent_id, entry = head, has_deadline = turn.deadline_ms, attempts = turn.attempts or 0,
    epoch = tonumber(epoch), published = tonumber(published), outcome = outcome, reason = ARGV[a + 6], event = ARGV[a + 7],
    transcript = entry ~= '' and entry or nil, new_session = turn.new_session,
    reply = whole_reply ~= '' and whole_reply or nil, found = agent, following = following,
    keep_ticket = may_go_on(agent, following, tonumber(ARGV[a + 10]), keys.parked), continues = (tonumber(agent.continues) or 0) + 1,
    manifest = ARGV[a + 11],
    stream_ttl_ms = whole_reply ~= '' and KEEP_STREAM_MS or RESULT_TTL_MS, outcome_ttl_ms = OUTCOME_TTL_MS,
  })
  if not goes_on then
    return {'done'}
  end
  -- The worker has the ticket for another whole lease.
  redis.call('XCLAIM', READY[agent.priority], GROUP, WORKER, '0', agent.ticket, 'JUSTID')
  return {'next', following.text}
end

expect_shared()
return {NOW, each(item_count(), finish)}
