-- Forgets ended turns, oldest first: those past their time, and the rest while they take more than they may. The idempotency
-- keys of turns that are forgotten early stay for their full time: they are small, and a turn must not run twice.
--
-- KEYS the shared ones, then for each ended turn: turn, result
-- ARGV 1 retained_bytes at most  2 outcome_ttl_ms, then for each turn its entry of `ended`, oldest first
-- Reply how many were forgotten

local MOST_BYTES, OUTCOME_TTL_MS = tonumber(ARGV[1]), tonumber(ARGV[2])
local ARGS, KEYS_A_TURN = 2, 2
-- Result streams to a call whose time is over: Redis has removed them.
local STREAMS_A_CALL = 1000

expect_shared()
local gone = redis.call('ZRANGE', STREAMS, '-inf', whole(NOW), 'BYSCORE', 'LIMIT', 0, STREAMS_A_CALL)
for _, stream in ipairs(gone) do
  redis.call('ZREM', STREAMS, stream)
  count('retained_bytes', -(tonumber(string.match(stream, ' (%d+)$')) or 0))
end
local forgotten = 0
for i = 0, #ARGV - ARGS - 1 do
  local text, k = ARGV[ARGS + i + 1], SHARED + i * KEYS_A_TURN
  local turn, ended_ms, turn_bytes, stream_bytes = string.match(text, '^(%S+) (%d+) (%d+) (%d+)$')
  -- Another worker was here meanwhile, or memory is fine.
  local is_oldest = redis.call('LINDEX', ENDED, 0) == text
  local due = turn and (tonumber(ended_ms) + OUTCOME_TTL_MS <= NOW or counter('retained_bytes') > MOST_BYTES)
  if not is_oldest or not due then
    break
  end
  redis.call('LPOP', ENDED)
  redis.call('UNLINK', KEYS[k + 1], KEYS[k + 2])
  count('retained_bytes', -tonumber(turn_bytes))
  if redis.call('ZREM', STREAMS, turn .. ' ' .. stream_bytes) == 1 then
    count('retained_bytes', -tonumber(stream_bytes))
  end
  forgotten = forgotten + 1
end
write_counters()
return forgotten
