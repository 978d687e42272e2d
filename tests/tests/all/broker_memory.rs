//! The memory adapter: the conformance suite.

use turnmill_tests::memory_queue::MemoryTestQueue;

turnmill_tests::broker_conformance!(MemoryTestQueue::start());
