-- Takes, keeps or gives up the right to remove garbage from the object store. The value is who has it.
--
-- KEYS 1 collector
-- ARGV 1 who the caller is  2 how long to have it, in milliseconds (0: give it up)  3 '1': take it if nobody has it
-- Reply nil if the caller has it, or had it and gave it up; otherwise who has it ('': nobody), and nothing was written

local has = redis.call('GET', KEYS[1]) or ''
local takes = has == '' and ARGV[3] == '1'
if has ~= ARGV[1] and not takes then
  return has
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return false
