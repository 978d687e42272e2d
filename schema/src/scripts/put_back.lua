-- Makes a token that was read but not leased readable by others, without waiting for it to idle.
--
-- KEYS 1 agent  2 ready stream of the token
-- ARGV 1 agent id  2 token id  3 priority of its stream  4 worker
-- Reply 1 when done, 0 where the token was not the caller's any more; nothing was written

expect(KEYS[1], 'hash')
expect(KEYS[2], 'stream')
if pending(KEYS[2], ARGV[2]) ~= ARGV[4] then
  return 0
end
local current = redis.call('HGET', KEYS[1], 'token') == ARGV[2]
drop_token(KEYS[2], ARGV[2])
if current then
  add_token(KEYS[1], ARGV[1], KEYS[2], ARGV[3])
end
return 1
