-- Removes consumers that are gone: silent for long and with nothing pending. In one script, because removing a consumer
-- drops what is pending under it.
--
-- KEYS streams
-- ARGV 1 their group  2 silence in milliseconds
-- Reply how many were removed

local removed = 0
for _, stream in ipairs(KEYS) do
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, ARGV[1])) do
    local found = {}
    for i = 1, #consumer, 2 do
      found[consumer[i]] = consumer[i + 1]
    end
    if found.pending == 0 and found.idle > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], found.name)
      removed = removed + 1
    end
  end
end
return removed
