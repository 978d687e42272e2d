-- Commits a manifest during or after a lease: what the store acknowledged later than the turn ended. Only a hint, so one
-- that comes too late (another lease wrote since, or an operator forgot the history, or the agent is gone) is ignored.
--
-- KEYS 1 agent
-- ARGV 1 epoch of the lease  2 manifest in its envelope
-- Reply 1 where it was written, 0 where it was ignored

local found = redis.call('HMGET', KEYS[1], 'state', 'manifest_epoch')
if not found[1] or tonumber(ARGV[1]) < (tonumber(found[2]) or 0) then
  return 0
end
redis.call('HSET', KEYS[1], 'manifest', ARGV[2], 'manifest_epoch', ARGV[1])
return 1
