-- Ends turns that no worker ended: cancels them, waiting or running (a running one ends at once too: its worker is fenced, and
-- told), or ends waiting ones whose deadline has passed.
--
-- KEYS as in conclude.lua
-- ARGV 1 result_ttl_ms  2 outcome_ttl_ms  3 outcome: 'cancelled' or 'expired'
--      then for each item: channel of notices, agent id, the turn's backlog entry
-- Reply now_ms, then for each item
--      {'done'}, {'ended', outcome}: it had ended before, {'unknown'}, {'error', reason}
--      {'early'}: its deadline has not passed, or its worker will see to it; nothing was written

local RESULT_TTL_MS, OUTCOME_TTL_MS, OUTCOME = ARGV[1], ARGV[2], ARGV[3]
local ARGS, ARGS_AN_ITEM = 3, 3

-- Whether the turn must not end now. One whose worker fell silent is not running any more, whatever its own state says.
local function too_early(turn, is_running)
  local deadline_ms = tonumber(turn.deadline_ms)
  return OUTCOME == 'expired' and (is_running or not deadline_ms or NOW < deadline_ms)
end

local function reason_of(turn)
  if OUTCOME == 'cancelled' then
    return 'cancelled'
  end
  return 'the deadline passed ' .. whole(NOW - tonumber(turn.deadline_ms)) .. ' ms ago while the turn waited; allow more time'
end

local function end_unrun(i)
  local keys, a = item_keys(i), ARGS + i * ARGS_AN_ITEM
  local notices, agent_id, entry = ARGV[a + 1], ARGV[a + 2], backlog_entry(ARGV[a + 3])
  local turn = fields(keys.turn, {'state', 'outcome', 'attempts', 'deadline_ms'})
  if not turn.state then
    return {'unknown'}
  end
  if turn.state == 'ended' then
    return {'ended', turn.outcome or ''}
  end
  local agent = read_agent(keys)
  local head, following = read_backlog(keys)
  local is_head = head and head.turn == entry.turn
  if too_early(turn, is_head and agent.state == 'leased') then
    return {'early'}
  end
  local last_epoch = tonumber(agent.epoch) or 0
  local top_epoch, published = published_in(keys.result, last_epoch)
  expect(keys.parked, 'zset')
  local c = {
    keys = keys, agent = agent_id, entry = entry, has_deadline = turn.deadline_ms, attempts = turn.attempts or 0,
    epoch = math.max(NOW, top_epoch + 1), published = published, outcome = OUTCOME, event = ending(OUTCOME, reason_of(turn), entry.enqueued_ms),
    stream_ttl_ms = RESULT_TTL_MS, outcome_ttl_ms = OUTCOME_TTL_MS,
  }
  if not is_head then
    end_turn(c)
    redis.call('LREM', keys.backlog, 1, entry.text)
    return {'done'}
  end
  c.epoch = math.max(c.epoch, last_epoch + 1)
  c.found, c.following = agent, following
  -- A ticket that no worker leased stands for the turn behind as well.
  c.keep_ticket = agent.state == 'ready'
  if agent.state == 'halted' or agent.state == 'paused' then
    agent.hold = agent.state
  end
  stop_waiting(agent_id, keys.parked)
  conclude(c)
  if agent.state == 'leased' then
    redis.call('PUBLISH', notices, entry.turn)
  end
  return {'done'}
end

expect_shared()
return {NOW, each(item_count(), end_unrun)}
