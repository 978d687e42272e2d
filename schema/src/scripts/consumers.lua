-- Removes consumers of workers that are gone: silent for long and with nothing pending. In one script, because
-- removing a consumer drops what is pending under it.
--
-- KEYS 1 a ready stream
-- ARGV 1 silence in milliseconds
-- Reply how many were removed

local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], GROUP)) do
  local found = {}
  for i = 1, #consumer, 2 do
    found[consumer[i]] = consumer[i + 1]
  end
  if found.pending == 0 and found.idle > tonumber(ARGV[1]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], GROUP, found.name)
    removed = removed + 1
  end
end
return removed
