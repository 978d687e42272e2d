-- Forgets ended turns, oldest first: those past their time, and the rest while they take more than they may. The idempotency
-- keys of turns that are forgotten early stay for their full time: they are small, and a turn must not run twice.
--
-- An entry that cannot be read is dropped when it is the oldest: it would keep all others for ever.
--
-- KEYS the shared ones, then for each entry that the caller can read: turn, result
-- ARGV 1 retained_bytes at most  2 outcome_ttl_ms, then for each of the oldest entries of `ended`, oldest first: its text,
--      whether the caller can read it (1 or 0)
-- Reply {how many turns were forgotten, how many entries were dropped, whether more streams may be past their time (1 or 0)}

local MOST_BYTES, OUTCOME_TTL_MS = tonumber(ARGV[1]), tonumber(ARGV[2])
local ARGS, ARGS_AN_ENTRY, KEYS_A_TURN = 2, 2, 2
-- Result streams to a call whose time is over: Redis has removed them.
local STREAMS_A_CALL = 1000

expect_shared()
local gone = redis.call('ZRANGE', STREAMS, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', '0', whole(STREAMS_A_CALL))
if #gone > 0 then
  redis.call('ZREM', STREAMS, unpack(gone))
end
for _, stream in ipairs(gone) do
  count('retained_bytes', -(tonumber(string.match(stream, ' (%d+)$')) or 0))
end
local forgotten, unreadable, k = 0, 0, SHARED
for a = ARGS + 1, #ARGV, ARGS_AN_ENTRY do
  local text, has_keys = ARGV[a], ARGV[a + 1] == '1'
  if redis.call('LINDEX', ENDED, 0) ~= text then
    -- Another worker was here meanwhile.
    break
  end
  local turn, ended_ms, turn_bytes, stream_bytes = string.match(text, '^(%S+) (%d+) (%d+) (%d+)$')
  if not turn or not has_keys then
    unreadable = unreadable + 1
  elseif tonumber(ended_ms) + OUTCOME_TTL_MS <= NOW or counter('retained_bytes') > MOST_BYTES then
    redis.call('UNLINK', KEYS[k + 1], KEYS[k + 2])
    count('retained_bytes', -tonumber(turn_bytes))
    if redis.call('ZREM', STREAMS, turn .. ' ' .. stream_bytes) == 1 then
      count('retained_bytes', -tonumber(stream_bytes))
    end
    forgotten = forgotten + 1
  else
    break
  end
  redis.call('LPOP', ENDED)
  if has_keys then
    k = k + KEYS_A_TURN
  end
end
write_counters()
return {forgotten, unreadable, #gone == STREAMS_A_CALL and 1 or 0}
