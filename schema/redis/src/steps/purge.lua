-- Forgets dead letters.
--
-- KEYS the shared ones, then for each: turn, result
-- ARGV for each: its entry id in `dead`
-- Reply how many were there

expect_shared()
local purged = 0
for i, entry in ipairs(ARGV) do
  local k = SHARED + (i - 1) * 2
  if redis.call('XDEL', DEAD, entry) == 1 then
    redis.call('UNLINK', KEYS[k + 1], KEYS[k + 2])
    purged = purged + 1
  end
end
return purged
