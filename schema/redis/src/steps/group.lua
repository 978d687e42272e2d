-- Creates a consumer group of the stream of events if it is missing.
--
-- KEYS 1 events
-- ARGV 1 group  2 the entry after which it starts ('$': with what comes from now on)
-- Reply 1 if it was created, 0 otherwise

local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups.err and {} or groups) do
  for i = 1, #group, 2 do
    if group[i] == 'name' and group[i + 1] == ARGV[1] then
      return 0
    end
  end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
return 1
