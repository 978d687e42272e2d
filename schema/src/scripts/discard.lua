-- Drops a token whose agent has nothing to run.
--
-- KEYS 1 agent  2 backlog  3 ready stream of the token  4 open
-- ARGV 1 agent id  2 token id  3 worker
-- Reply 1 when done, 0 where the agent has work by now: lease it instead

expect(KEYS[1], 'hash')
expect(KEYS[2], 'list')
expect(KEYS[3], 'stream')
expect(KEYS[4], 'zset')
if redis.call('LLEN', KEYS[2]) > 0 then
  return 0
end
if pending(KEYS[3], ARGV[2]) ~= ARGV[3] then
  return 1
end
if redis.call('HGET', KEYS[1], 'token') == ARGV[2] then
  make_idle(KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
drop_token(KEYS[3], ARGV[2])
return 1
