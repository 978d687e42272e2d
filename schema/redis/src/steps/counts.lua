-- How much work there is, at one moment. Acknowledged tickets are always deleted, so what a stream holds beyond the
-- pending ones is undelivered; the group's own lag goes null after restarts and deletions and is only a cross-check.
--
-- KEYS the shared ones
-- Reply {now_ms, {runnable agents, leased agents, open turns, enqueue time of the oldest ('': none), the group's own lag
--      ('': Redis does not know it)} for interactive and for batch, enqueue time of the oldest head of all ('': none),
--      delayed agents, dead letters, bytes of ended turns, bytes of dead letters, paused (1 or 0), turns ever enqueued,
--      turns ever ended as {completed, failed, cancelled, expired}}

-- A stream that does not exist yet has no group either. Any other error is the caller's: who may not ask is not told 0.
local function pending_of(stream)
  local summary = redis.pcall('XPENDING', stream, GROUP)
  if not summary.err then
    return summary[1]
  end
  if not summary.err:find('^NOGROUP') then
    error(redis.error_reply(summary.err .. ' (XPENDING ' .. stream .. ')'))
  end
  return 0
end

local function lag_of(stream)
  local group = groups_in(redis.pcall('XINFO', 'GROUPS', stream))[GROUP]
  if group then
    return group.lag or ''
  end
  -- A stream that does not exist yet holds nothing.
  return redis.call('EXISTS', stream) == 0 and 0 or ''
end

local function work_of(priority)
  local stream = READY[priority]
  local leased, oldest = pending_of(stream), ''
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  for i = 1, first and #first[2] or 0, 2 do
    if first[2][i] == 'head' then
      oldest = whole(backlog_entry(first[2][i + 1]).enqueued_ms)
    end
  end
  -- A pending entry that an operator deleted is no entry of the stream any more.
  local runnable = math.max(0, redis.call('XLEN', stream) - leased)
  return {runnable, leased, counter('open:' .. priority), oldest, lag_of(stream)}
end

local oldest = redis.call('ZRANGE', OPEN, 0, 0, 'WITHSCORES')[2] or ''
return {
  NOW, work_of('interactive'), work_of('batch'), oldest, redis.call('ZCARD', DELAYED), redis.call('XLEN', DEAD),
  counter('retained_bytes'), counter('dead_bytes'), redis.call('EXISTS', PAUSED), counter('enqueued'),
  {counter('ended:completed'), counter('ended:failed'), counter('ended:cancelled'), counter('ended:expired')},
}
