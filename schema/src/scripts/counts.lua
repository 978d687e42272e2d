-- How much work there is, at one moment. Acknowledged tokens are always deleted, so what a stream holds beyond the
-- pending ones is undelivered; the group's own lag goes null after restarts and deletions.
--
-- KEYS 1 ready:interactive  2 ready:batch  3 open  4 depth
-- Reply {runnable agents, leased agents, open turns, enqueue time of the oldest head ('': none), now_ms}

local runnable, held = 0, 0
for i = 1, 2 do
  local pending_here = redis.call('XPENDING', KEYS[i], GROUP)[1]
  -- A pending entry that an operator deleted is no entry of the stream any more.
  runnable = runnable + math.max(0, redis.call('XLEN', KEYS[i]) - pending_here)
  held = held + pending_here
end
local oldest = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] or ''
return {runnable, held, counter(KEYS[4]), oldest, now_ms()}
