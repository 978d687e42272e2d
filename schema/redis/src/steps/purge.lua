-- Forgets dead letters, oldest first.
--
-- KEYS the shared ones, then for each: turn, result
-- ARGV 1 '': all of them; else only while dead letters take more than this many bytes, then for each: its entry id in `dead`
-- Reply how many were there

local MOST_BYTES, ARGS = tonumber(ARGV[1]), 1

-- What the letter was counted with. One that another version wrote has no size.
local function bytes_of_letter(entry)
  local fields = redis.call('XRANGE', DEAD, entry, entry)[1]
  for i = 1, fields and #fields[2] or 0, 2 do
    if fields[2][i] == 'bytes' then
      return tonumber(fields[2][i + 1]) or 0
    end
  end
  return 0
end

expect_shared()
local purged = 0
for i = 1, #ARGV - ARGS do
  local entry, k = ARGV[ARGS + i], SHARED + (i - 1) * 2
  if MOST_BYTES and counter('dead_bytes') <= MOST_BYTES then
    break
  end
  local bytes = bytes_of_letter(entry)
  if redis.call('XDEL', DEAD, entry) == 1 then
    redis.call('UNLINK', KEYS[k + 1], KEYS[k + 2])
    count('dead_bytes', -bytes)
    purged = purged + 1
  end
end
write_counters()
return purged
