-- Enters a worker into the registry, and asks what it is told. Workers that were silent for long are not listed any more.
--
-- KEYS 1 workers  2 the worker's hash  3 its order
-- ARGV 1 worker  2 how long it is listed after it was last heard of, in milliseconds, then its fields and values
-- Reply {now_ms, order ('': none)}

local WORKERS, WORKER, ORDER = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local listed_ms = tonumber(ARGV[2])

redis.call('HSET', WORKER, unpack(ARGV, 3))
redis.call('PEXPIRE', WORKER, ARGV[2])
redis.call('ZADD', WORKERS, string.format('%d', now_ms), ARGV[1])
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', string.format('%d', math.max(0, now_ms - listed_ms)))
return {now_ms, redis.call('GET', ORDER) or ''}
