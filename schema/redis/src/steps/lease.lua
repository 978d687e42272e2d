-- Leases the heads of agents' backlogs to the worker that holds the agents' tickets.
--
-- KEYS as in conclude.lua, each item's for the head the caller knows of
-- ARGV 1 worker  2 most attempts in a row without progress  3 result_ttl_ms  4 outcome_ttl_ms
--      5 turns of one tenant that may run at once (0: no limit)
--      then for each item: agent id, ticket id, priority of the ticket's stream, the head the caller knows of, what it knows of
--      the history ('': nothing; else `<how many of the first entries> <what the last of them begins with>`), and the seeding
--      that it follows
-- Reply now_ms, then for each item
--      {'leased', epoch, attempt, alone (1 or 0), deadline_ms (0: none), envelope ('': missing), entries of the result
--       stream, transcript, manifest ('': none), how many of the transcript's first entries are left out because the caller
--       knows them, the agent's seeding ('': none)}; both lists are empty where there can be nothing in them
--      {'head', text}: the head is this one; call again with its keys
--      {'gone'}: the ticket was not the caller's, or no turn is left, or its tenant runs as many as it may
--      {'later'}: the answers of this call are large enough; call again
--      {'paused'}: the queue is paused; return the ticket
--      {'error', reason}: something of this agent cannot be read; nothing was written

local WORKER, MAX_ATTEMPTS, RESULT_TTL_MS, OUTCOME_TTL_MS = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local TENANT_CAP = tonumber(ARGV[5])
local ARGS, ARGS_AN_ITEM = 5, 6
local LEASED_FIELDS = {'state', 'ticket', 'priority', 'owner', 'epoch', 'delivery', 'manifest', 'place', 'seeding'}
local TURN_FIELDS = {'envelope', 'attempts', 'barren', 'progress', 'new_session', 'deadline_ms', 'requeued'}
-- Pauses of an agent that cannot be leased: the first one, and the longest. They double.
local UNLEASABLE_PAUSE_MS, LONGEST_PAUSE_MS = 1000, 60000

-- Bytes of histories and replies to a call, about: reading and sending more keeps the server from others for too long.
local REPLY_BYTES = 1000000
local answered_bytes = 0

-- Parks the agent until one of its tenant's turns ends: see promote.lua. Agents wait in the order in which their heads were
-- enqueued, so one that got a ticket and found no place does not lose its own.
local function park(keys, agent, head, stream, ticket)
  drop_ticket(stream, ticket)
  redis.call('HSET', keys.agent, 'state', 'parked', 'ticket', '')
  redis.call('ZADD', keys.parked, whole(head.enqueued_ms), agent)
  redis.call('SADD', CAPPED, tenant_of(agent))
  return {'gone'}
end

-- Whether the agent must wait for a place: its tenant runs as many turns as it may, or others of it wait longer for a place.
local function must_park(keys, agent_id, agent)
  if TENANT_CAP == 0 or agent.state ~= 'ready' then
    return false
  end
  expect(keys.parked, 'zset')
  return counter(tenant_of(agent_id) .. ':leased') >= TENANT_CAP
    or (agent.place ~= '1' and redis.call('EXISTS', keys.parked) == 1)
end

-- The agent's history behind the part of it that the caller knows, and how many entries that part has. A caller that knows the last
-- of these entries knows those in front of it: entries are added at the end, and dropped there or all at once. If a history was put
-- in the place of another, its seeding is another too.
local function read_history(transcript_key, seeding, known, known_seeding)
  local entries, start = string.match(known, '^([1-9]%d*) (.+)$')
  if entries and seeding == known_seeding then
    local found = ask('LRANGE', transcript_key, whole(entries - 1), '-1')
    if found[1] and string.sub(found[1], 1, #start) == start then
      table.remove(found, 1)
      return found, tonumber(entries)
    end
  end
  return ask('LRANGE', transcript_key, '0', '-1'), 0
end

-- Bytes of all texts in a reply.
local function bytes_of(reply)
  if type(reply) ~= 'table' then
    return #tostring(reply)
  end
  local bytes = 0
  for _, part in ipairs(reply) do
    bytes = bytes + bytes_of(part)
  end
  return bytes
end

local function lease(i)
  local keys, a = item_keys(i), ARGS + i * ARGS_AN_ITEM
  local agent_id, ticket, priority, known_head = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local known_history, known_seeding = ARGV[a + 5], ARGV[a + 6]
  local stream = READY[priority]
  local consumer, delivery = pending(stream, ticket)
  if consumer ~= WORKER then
    return {'gone'}
  end
  if answered_bytes >= REPLY_BYTES then
    return {'later'}
  end
  local agent = fields(keys.agent, LEASED_FIELDS)
  if not stands_for(agent, ticket) or agent.priority ~= priority then
    drop_ticket(stream, ticket)
    return {'gone'}
  end
  local texts = ask('LRANGE', keys.backlog, '0', '1')
  if not texts[1] then
    -- An operator deleted the backlog: nothing to run.
    drop_ticket(stream, ticket)
    unlease(agent_id, agent)
    note_head(agent_id, nil)
    make_runnable(keys.agent, agent_id, read_agent(keys), nil)
    return {'gone'}
  end
  if texts[1] ~= known_head then
    return {'head', backlog_entry(texts[1]).text}
  end

  local turn = fields(keys.turn, TURN_FIELDS)
  local attempts, last_epoch = tonumber(turn.attempts) or 0, tonumber(agent.epoch) or 0
  local entries, top_epoch, published = {}, 0, 0
  if attempts > 0 or turn.requeued then
    entries = ask('XRANGE', keys.result, '-', '+')
    top_epoch, published = published_in(keys.result, last_epoch)
  end
  local transcript, left_out = {}, 0
  if not turn.new_session and not is_lone(agent_id) then
    transcript, left_out = read_history(keys.transcript, agent.seeding or '', known_history, known_seeding)
  end
  -- Attempts in a row, up to the last one, that published nothing.
  local barren = tonumber(turn.barren) or 0
  if published > (tonumber(turn.progress) or 0) then
    barren = 0
  end
  local deadline_ms = tonumber(turn.deadline_ms) or 0
  local function leased(epoch, attempt, barren_before)
    local alone = barren_before >= 2 and 1 or 0
    answered_bytes = answered_bytes + bytes_of(transcript) + bytes_of(entries) + #(turn.envelope or '')
    return {'leased', epoch, attempt, alone, deadline_ms, turn.envelope or '', entries, transcript,
      agent.manifest or '', left_out, agent.seeding or ''}
  end

  -- The same delivery leased before, and its reply was lost: the same answer.
  if agent.state == 'leased' and agent.owner == WORKER and agent.delivery == tostring(delivery)
      and top_epoch == last_epoch then
    return leased(last_epoch, attempts, math.max(0, barren - 1))
  end
  if must_park(keys, agent_id, agent) then
    return park(keys, agent_id, backlog_entry(texts[1]), stream, ticket)
  end
  local epoch = math.max(last_epoch + 1, NOW, top_epoch + 1)
  local function end_unrun(outcome, cause, reason)
    local head, whole_agent = backlog_entry(texts[1]), read_agent(keys)
    local goes_on = conclude({
      keys = keys, agent = agent_id, entry = head, has_deadline = turn.deadline_ms, attempts = attempts, epoch = epoch,
      published = published, outcome = outcome, reason = cause, event = ending(outcome, reason, head.enqueued_ms),
      found = whole_agent, following = backlog_entry(texts[2]), keep_ticket = true, continues = whole_agent.continues,
      stream_ttl_ms = RESULT_TTL_MS, outcome_ttl_ms = OUTCOME_TTL_MS,
    })
    return goes_on and {'head', texts[2]} or {'gone'}
  end
  if deadline_ms > 0 and NOW >= deadline_ms then
    local late_ms = whole(NOW - deadline_ms)
    return end_unrun('expired', '', 'the deadline had passed by ' .. late_ms .. ' ms when a worker was free; allow more time')
  end
  if barren >= MAX_ATTEMPTS then
    return end_unrun('failed', 'attempts',
      'gave up after ' .. barren .. ' attempts that made no progress; see the workers\' logs')
  end

  -- Counted before it runs, because a turn that kills its worker cannot be counted after.
  local begin = {kind = 'begin', epoch = epoch, resume_from = published, attempt = attempts + 1, worker = WORKER}
  local epoch_text, published_text = whole(epoch), whole(published)
  redis.call('XADD', keys.result, epoch_text .. '-' .. published_text, 'event', envelope(begin), 'at', NOW_TEXT)
  redis.call('HSET', keys.agent, 'state', 'leased', 'owner', WORKER, 'epoch', epoch_text, 'delivery', whole(delivery),
    'place', '', 'unleasable', '')
  redis.call('HSET', keys.turn, 'state', 'leased', 'epoch', epoch_text, 'attempts', whole(attempts + 1), 'barren',
    whole(barren + 1), 'progress', published_text)
  if agent.state == 'ready' then
    count(tenant_of(agent_id) .. ':leased', 1)
  end
  return leased(epoch, attempts + 1, barren)
end

-- The agent of a ticket that cannot be leased waits for a growing while, and its head ends at the last attempt: what is broken
-- must not keep the workers busy.
local function set_aside(i, reason)
  local keys, a = item_keys(i), ARGS + i * ARGS_AN_ITEM
  local agent_id, ticket, stream = ARGV[a + 1], ARGV[a + 2], READY[ARGV[a + 3]]
  if pending(stream, ticket) ~= WORKER then
    return
  end
  drop_ticket(stream, ticket)
  -- An agent that cannot be read stays among those with work, and each sweep says so.
  local agent = read_agent(keys)
  if not stands_for(agent, ticket) then
    return
  end
  local failures = (tonumber(ask('HGET', keys.agent, 'unleasable')) or 0) + 1
  local ended = failures >= MAX_ATTEMPTS and pcall(function()
    local head, following = read_backlog(keys)
    expect(keys.turn, 'hash')
    expect(keys.result, 'stream')
    local last_epoch = tonumber(agent.epoch) or 0
    local top_epoch, published = published_in(keys.result, last_epoch)
    conclude({
      keys = keys, agent = agent_id, entry = head, has_deadline = true, attempts = failures, published = published,
      outcome = 'failed', epoch = math.max(last_epoch + 1, NOW, top_epoch + 1), reason = 'unreadable',
      event = ending('failed', 'it cannot be leased: ' .. reason, head.enqueued_ms), found = agent,
      following = following, stream_ttl_ms = RESULT_TTL_MS, outcome_ttl_ms = OUTCOME_TTL_MS,
    })
  end)
  if ended then
    return
  end
  unlease(agent_id, agent)
  if failures >= MAX_ATTEMPTS then
    redis.call('HSET', keys.agent, 'state', 'halted', 'ticket', '', 'owner', '', 'unleasable', '')
  else
    redis.call('HSET', keys.agent, 'state', 'delayed', 'ticket', '', 'owner', '', 'unleasable', failures)
    redis.call('ZADD', DELAYED, whole(NOW + math.min(LONGEST_PAUSE_MS, UNLEASABLE_PAUSE_MS * 2 ^ (failures - 1))), agent_id)
  end
end

local function lease_or_set_aside(i)
  local ok, answer = pcall(lease, i)
  if ok then
    return answer
  end
  local reason = type(answer) == 'table' and answer.err or tostring(answer)
  pcall(set_aside, i, reason)
  return {'error', reason}
end

expect_shared()
if redis.call('EXISTS', PAUSED) == 1 then
  return {NOW, each(item_count(), function() return {'paused'} end)}
end
return {NOW, each(item_count(), lease_or_set_aside)}
