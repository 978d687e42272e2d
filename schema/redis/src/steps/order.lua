-- Tells a worker to do something.
--
-- KEYS 1 its order
-- ARGV 1 what  2 how long the order stands, in milliseconds
-- Reply OK

return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
