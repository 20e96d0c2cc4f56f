package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockDir has one lock file for each instance and network namespace.
const lockDir = "/run/lbproxy"

// lockInstance makes sure that this instance is alone in its network namespace. The kernel drops the lock at the moment the
// process ends, however it ends; the file of one that was killed is removed by the next agent that starts.
func lockInstance(o *options) (unlock func(), err error) {
	if err := os.MkdirAll(lockDir, 0o700); err != nil {
		return nil, fmt.Errorf("lock instance: %w", err)
	}
	removeOldLocks()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("find network namespace: %w", err)
	}
	path := filepath.Join(lockDir, fmt.Sprintf("%s-%d.lock", o.name(), ns.Ino))
	for {
		f, err := lockFile(path)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("an agent with the name %s is already running here: stop it, or choose another --instance", o.name())
		}
		if err != nil {
			return nil, fmt.Errorf("lock instance: %w", err)
		}
		if f != nil {
			return func() { _ = errors.Join(os.Remove(path), f.Close()) }, nil
		}
	}
}

// lockFile locks a file, made if there is none. It returns nil if somebody removed it meanwhile: a lock on it would
// keep nobody out.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(mine, there) {
		return nil, f.Close()
	}
	return f, nil
}

// removeOldLocks removes the files of processes that were killed: those that can be locked.
func removeOldLocks() {
	files, _ := filepath.Glob(filepath.Join(lockDir, "*.lock"))
	for _, path := range files {
		if f, err := lockFile(path); err == nil && f != nil {
			_ = errors.Join(os.Remove(path), f.Close())
		}
	}
}
