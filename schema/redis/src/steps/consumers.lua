-- Removes consumers that are gone: silent for long and with nothing pending. In one script, because removing a consumer
-- drops what is pending under it.
--
-- KEYS streams
-- ARGV 1 their group  2 silence in milliseconds
-- Reply how many were removed

local removed = 0
for _, stream in ipairs(KEYS) do
  for _, answer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, ARGV[1])) do
    local consumer = named(answer)
    if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], consumer.name)
      removed = removed + 1
    end
  end
end
return removed
