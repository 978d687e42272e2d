-- Creates the ready streams and their group if they are missing. Groups start at 0, so that no ticket written before is
-- missed.
--
-- KEYS the shared ones
-- Reply how many groups were created

local created = 0
for _, stream in pairs(READY) do
  expect(stream, 'stream')
  if not groups_in(redis.pcall('XINFO', 'GROUPS', stream))[GROUP] then
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    created = created + 1
  end
end
return created
