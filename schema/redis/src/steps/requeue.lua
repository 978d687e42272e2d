-- Requeues leased turns: each stays the head of its backlog.
--
-- KEYS as in conclude.lua
-- ARGV 1 worker  2 most attempts in a row without progress  3 result_ttl_ms  4 outcome_ttl_ms
--      then for each item: agent id, turn id, epoch, delay_ms ('': at once, and the attempt is not counted; else it was
--      one that failed, and the next one starts so much later), why it failed: in one word, in one sentence, the agent's
--      manifest in its envelope ('': the old one stays)
-- Reply now_ms, then for each item
--      {'done'}: requeued, now or by the same call before
--      {'dead'}: that was the last attempt; the turn ended as failed
--      {'fenced'}: the lease was lost; nothing was written
--      {'error', reason}: something of this agent cannot be read; nothing was written

local WORKER, MAX_ATTEMPTS, RESULT_TTL_MS, OUTCOME_TTL_MS = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ARGS, ARGS_AN_ITEM = 4, 7

local function requeue(i)
  local keys, a = item_keys(i), ARGS + i * ARGS_AN_ITEM
  local agent_id, turn_id, epoch, delay_ms, cause, reason =
    ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  local turn = fields(keys.turn, {'state', 'epoch', 'attempts', 'barren', 'progress', 'requeued', 'deadline_ms'})
  if turn.requeued == epoch then
    return {'done'}
  end
  if turn.state == 'ended' and turn.epoch == epoch and delay_ms ~= '' then
    return {'dead'}
  end
  local agent, head_text, following = read_lease(keys, WORKER, turn_id, epoch)
  if not agent then
    return {'fenced'}
  end
  local head = backlog_entry(head_text)
  local _, published = published_in(keys.result, tonumber(epoch))
  local attempts, barren = tonumber(turn.attempts) or 1, tonumber(turn.barren) or 1
  if published > (tonumber(turn.progress) or 0) then
    barren = 0
  end

  if delay_ms ~= '' and barren >= MAX_ATTEMPTS then
    local text = 'gave up after ' .. barren .. ' attempts that made no progress; the last one: ' .. reason
    conclude({
      keys = keys, agent = agent_id, entry = head, has_deadline = turn.deadline_ms, attempts = attempts, epoch = tonumber(epoch), published = published,
      outcome = 'failed', reason = cause, event = ending('failed', text, head.enqueued_ms), found = agent,
      following = following, keep_ticket = false, stream_ttl_ms = RESULT_TTL_MS, outcome_ttl_ms = OUTCOME_TTL_MS,
    })
    return {'dead'}
  end
  if delay_ms == '' then
    attempts, barren = attempts - 1, math.max(0, barren - 1)
  end
  redis.call('HSET', keys.turn, 'state', 'queued', 'attempts', attempts, 'barren', barren, 'progress',
    whole(published), 'requeued', epoch)
  unlease(agent_id, agent)
  drop_ticket(READY[agent.priority], agent.ticket)
  -- A failed attempt's turn is due later; its agent waits with it, so order holds.
  head.not_before_ms = delay_ms == '' and 0 or NOW + tonumber(delay_ms)
  local more, manifest = {'delivery', ''}, ARGV[a + 7]
  if manifest ~= '' then
    more = {'delivery', '', manifest_fields(manifest, tonumber(epoch))}
  end
  make_runnable(keys.agent, agent_id, agent, head, unpack(more))
  return {'done'}
end

expect_shared()
return {NOW, each(item_count(), requeue)}
