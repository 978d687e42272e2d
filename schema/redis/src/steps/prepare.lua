-- Creates the ready streams and their group if they are missing. Groups start at 0, so that no ticket written before is
-- missed.
--
-- KEYS the shared ones
-- Reply how many groups were created

local created = 0
for _, stream in pairs(READY) do
  expect(stream, 'stream')
  local groups, found = redis.pcall('XINFO', 'GROUPS', stream), false
  for _, group in ipairs(groups.err and {} or groups) do
    for i = 1, #group, 2 do
      found = found or (group[i] == 'name' and group[i + 1] == GROUP)
    end
  end
  if not found then
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    created = created + 1
  end
end
return created
