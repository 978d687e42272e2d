-- Begins a sweep: takes the right to it and tells which agents are to be looked at. Each sweep goes on after the one before,
-- so that every agent with work is looked at in time, however many there are.
--
-- KEYS the shared ones, then sweeper, sweep cursor
-- ARGV 1 worker  2 how long nobody else sweeps, in milliseconds  3 agents to look at, at most
-- Reply {now_ms, agents}; {now_ms} while another worker has the right

local SWEEPER, CURSOR = KEYS[SHARED + 1], KEYS[SHARED + 2]
local WORKER, PERIOD_MS, LIMIT = ARGV[1], ARGV[2], tonumber(ARGV[3])

expect(OPEN, 'zset')
if not redis.call('SET', SWEEPER, WORKER, 'NX', 'PX', PERIOD_MS) then
  return {NOW}
end
-- A head younger than a lease has hardly lost its ticket. Scores may be equal, so the cursor is a rank, which moves when
-- agents come and go: one that is skipped for that is found the next time round.
local last = whole(math.max(0, NOW - tonumber(PERIOD_MS)))
local first = tonumber(redis.pcall('GET', CURSOR)) or 0
local agents = redis.call('ZRANGE', OPEN, '-inf', last, 'BYSCORE', 'LIMIT', first, LIMIT)
if #agents == 0 and first > 0 then
  first = 0
  agents = redis.call('ZRANGE', OPEN, '-inf', last, 'BYSCORE', 'LIMIT', 0, LIMIT)
end
if #agents < LIMIT then
  redis.call('DEL', CURSOR)
else
  redis.call('SET', CURSOR, whole(first + LIMIT))
end
return {NOW, agents}
