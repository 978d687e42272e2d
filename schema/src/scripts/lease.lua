-- Leases the head of an agent's backlog to the worker that holds the agent's token.
--
-- KEYS as in conclude.lua, for the head the caller saw
-- ARGV 1 agent id  2 token id  3 priority of the token's stream  4 worker  5 the head the caller saw (backlog entry)
--      6 most attempts in a row without progress  7 result_ttl_ms  8 outcome_ttl_ms
-- Reply {'leased', epoch, attempt, alone (1 or 0), new_session (1 or 0), enqueued_ms, now_ms, envelope ('': missing)}
--      {'moved'}: the head is another one; read it and call again
--      {'next'}: the head could not run and was ended; the token now stands for the next one, call again
--      {'gone'}: the token was not the caller's, or no turn is left

local agent_id, token, priority, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local max_attempts, result_ttl_ms, outcome_ttl_ms = tonumber(ARGV[6]), ARGV[7], ARGV[8]

expect_types()
local consumer, delivery = pending(READY[priority], token)
if consumer ~= worker then
  return {'gone'}
end
local agent = fields(AGENT, 'state', 'token', 'priority', 'owner', 'epoch', 'delivery')
local leasable = agent.state == 'ready' or agent.state == 'leased'
if agent.token ~= token or agent.priority ~= priority or not leasable then
  drop_token(READY[priority], token)
  return {'gone'}
end
local head = backlog_entry(0)
if not head or head.text ~= ARGV[5] then
  return {'moved'}
end

local now = now_ms()
local turn = fields(TURN, 'envelope', 'attempts', 'barren', 'progress', 'new_session', 'deadline_ms')
local last_epoch, attempts = tonumber(agent.epoch) or 0, tonumber(turn.attempts) or 0
local top_epoch, published = result_top()
-- Attempts in a row, up to the last one, that published nothing.
local barren = tonumber(turn.barren) or 0
if published > (tonumber(turn.progress) or 0) then
  barren = 0
end

local function leased(epoch, attempt, barren_before)
  local alone = barren_before >= 2 and 1 or 0
  local new_session = turn.new_session == '1' and 1 or 0
  return {'leased', epoch, attempt, alone, new_session, head.enqueued_ms, now, turn.envelope or ''}
end

-- The same delivery leased before, and its reply was lost: the same answer.
if agent.state == 'leased' and agent.owner == worker and agent.delivery == tostring(delivery)
    and top_epoch == last_epoch then
  return leased(last_epoch, attempts, math.max(0, barren - 1))
end

local epoch = math.max(last_epoch + 1, now, top_epoch + 1)
local function give_up(outcome, reason)
  -- Not below 0 where the server's clock was set back: readers expect whole numbers.
  local waited_ms = math.max(0, now - head.enqueued_ms)
  local timing = {queued_ms = waited_ms, total_ms = waited_ms}
  local ending = {kind = 'end', outcome = outcome, error = reason, timing = timing}
  local more = conclude({
    agent = agent_id, turn = head.turn, epoch = epoch, published = published, outcome = outcome,
    event = envelope(ending), entry = '', keep_token = true, now = now,
    result_ttl_ms = result_ttl_ms, outcome_ttl_ms = outcome_ttl_ms,
  })
  return {more and 'next' or 'gone'}
end

local deadline_ms = tonumber(turn.deadline_ms) or 0
if deadline_ms > 0 and now >= deadline_ms then
  local late_ms = whole(now - deadline_ms)
  return give_up('expired', 'the deadline had passed by ' .. late_ms .. ' ms when a worker was free; allow more time')
end
if barren >= max_attempts then
  return give_up('failed', 'gave up after ' .. barren .. ' attempts that made no progress; see the workers\' logs')
end

-- Counted before it runs, because a turn that kills its worker cannot be counted after.
redis.call('HSET', AGENT, 'state', 'leased', 'owner', worker, 'epoch', whole(epoch), 'delivery', delivery)
redis.call('HSET', TURN, 'state', 'leased', 'epoch', whole(epoch), 'attempts', attempts + 1, 'barren', barren + 1,
  'progress', whole(published))
local begin = {kind = 'begin', epoch = epoch, resume_from = published, attempt = attempts + 1, worker = worker}
redis.call('XADD', RESULT, whole(epoch) .. '-' .. whole(published), 'event', envelope(begin), 'at', whole(now))
return leased(epoch, attempts + 1, barren)
