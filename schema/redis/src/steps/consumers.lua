-- Removes consumers of workers that are gone: silent for long and with nothing pending. In one script, because
-- removing a consumer drops what is pending under it.
--
-- KEYS the shared ones
-- ARGV 1 silence in milliseconds
-- Reply how many were removed

local removed = 0
for _, stream in pairs(READY) do
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
    local found = {}
    for i = 1, #consumer, 2 do
      found[consumer[i]] = consumer[i + 1]
    end
    if found.pending == 0 and found.idle > tonumber(ARGV[1]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, found.name)
      removed = removed + 1
    end
  end
end
return removed
