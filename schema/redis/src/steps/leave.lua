-- Takes a worker that stops out of the registry.
--
-- KEYS 1 workers  2 the worker's hash  3 its order
-- ARGV 1 worker
-- Reply 1 if it was listed, 0 otherwise

redis.call('UNLINK', KEYS[2], KEYS[3])
return redis.call('ZREM', KEYS[1], ARGV[1])
