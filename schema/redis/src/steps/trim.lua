-- Forgets ended turns, oldest first: those past their time, and the rest while they take more than they may.
--
-- KEYS the shared ones, then for each ended turn: turn, result, idem (the turn key again where it has no key)
-- ARGV 1 retained_bytes at most  2 outcome_ttl_ms, then for each turn its entry of `ended`, oldest first
-- Reply how many were forgotten

local MOST_BYTES, OUTCOME_TTL_MS = tonumber(ARGV[1]), tonumber(ARGV[2])
local KEYS_A_TURN = 3

expect_shared()
local forgotten = 0
for i = 0, #ARGV - 3 do
  local text, k = ARGV[i + 3], SHARED + i * KEYS_A_TURN
  local turn, ended_ms, bytes = string.match(text, '^(%S+) (%d+) (%d+) %S+$')
  -- Another worker was here meanwhile, or memory is fine.
  local is_oldest = redis.call('LINDEX', ENDED, 0) == text
  local due = turn and (tonumber(ended_ms) + OUTCOME_TTL_MS <= NOW or counter('retained_bytes') > MOST_BYTES)
  if not is_oldest or not due then
    break
  end
  redis.call('LPOP', ENDED)
  redis.call('UNLINK', KEYS[k + 1], KEYS[k + 2])
  if KEYS[k + 3] ~= KEYS[k + 1] and redis.pcall('GET', KEYS[k + 3]) == turn then
    redis.call('UNLINK', KEYS[k + 3])
  end
  count('retained_bytes', -tonumber(bytes))
  forgotten = forgotten + 1
end
write_counters()
return forgotten
