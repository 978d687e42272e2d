-- Creates a consumer group of the stream of events if it is missing.
--
-- KEYS 1 events
-- ARGV 1 group  2 the entry after which it starts ('$': with what comes from now on)
-- Reply 1 if it was created, 0 otherwise

if groups_in(redis.pcall('XINFO', 'GROUPS', KEYS[1]))[ARGV[1]] then
  return 0
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
return 1
