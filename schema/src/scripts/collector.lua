-- Keeps or gives up the right to remove garbage from the object store. It is taken with SET NX PX: the value is who has it.
--
-- KEYS 1 collector
-- ARGV 1 who the caller is  2 how long to keep it, in milliseconds (0: give it up)
-- Reply 1 where the caller had it, 0 where another has it or nobody: then nothing was written

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if tonumber(ARGV[2]) == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
