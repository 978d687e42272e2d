-- How much work there is, at one moment. Acknowledged tokens are always deleted, so what a stream holds beyond the
-- pending ones is undelivered; the group's own lag goes null after restarts and deletions.
--
-- KEYS 1 ready:interactive  2 ready:batch  3 open  4 depth
-- Reply {runnable agents, leased agents, open turns, enqueue time of the oldest head ('': none), now_ms}

local entries, held = 0, 0
for i = 1, 2 do
  entries = entries + redis.call('XLEN', KEYS[i])
  held = held + redis.call('XPENDING', KEYS[i], GROUP)[1]
end
local oldest = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] or ''
return {entries - held, held, counter(KEYS[4]), oldest, now_ms()}
