package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A world has two kinds of state that outlive a process: cgroups and a bpffs mount. Both carry the world's
// name, and the name says whose they are: lbproxy-lab-<pid>-<start time of the process>-<number>.
const namePrefix = "lbproxy-lab-"

var worlds atomic.Int64

// newName returns a name no other world on this machine has.
func newName() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("read own start time: %w", err)
	}
	return fmt.Sprintf("%s%d-%s-%d", namePrefix, os.Getpid(), start, worlds.Add(1)), nil
}

// startTime returns when a process was started, in clock ticks since boot: with the pid it names a process for good.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("unexpected format of /proc/%d/stat", pid)
	}
	return fields[19], nil
}

// abandoned says whether name is that of a world whose process is gone.
func abandoned(name string) bool {
	parts := strings.Split(strings.TrimPrefix(name, namePrefix), "-")
	if !strings.HasPrefix(name, namePrefix) || len(parts) != 3 {
		return false
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return false
	}
	start, err := startTime(pid)
	return errors.Is(err, os.ErrNotExist) || err == nil && start != parts[1]
}

// state is the state of one world that outlives a process.
type state struct {
	cgroup string // directory of the world's cgroup
	dir    string // directory that holds the bpffs
}

// cgroups are the children of a world's cgroup.
var cgroups = []string{"node", "node2", "outside"}

// stateOf says where the state of the world with this name is.
func stateOf(name string) (state, error) {
	root, err := cgroupRoot()
	if err != nil {
		return state{}, err
	}
	return state{cgroup: filepath.Join(root, name), dir: filepath.Join(os.TempDir(), name)}, nil
}

func (s state) bpffs() string { return filepath.Join(s.dir, "bpf") }

func (s state) create() error {
	if err := os.Mkdir(s.cgroup, 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	for _, c := range cgroups {
		if err := os.Mkdir(filepath.Join(s.cgroup, c), 0o755); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	if err := os.MkdirAll(s.bpffs(), 0o700); err != nil {
		return fmt.Errorf("create directory for bpffs: %w", err)
	}
	if err := unix.Mount(namePrefix+"bpf", s.bpffs(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", s.bpffs(), err)
	}
	return nil
}

// remove ends what still runs in the cgroups and removes everything. It is no error if nothing is there.
func (s state) remove() error {
	for _, c := range cgroups {
		// Kernels before 5.14 have no cgroup.kill; there the processes were ended one by one before.
		_ = os.WriteFile(filepath.Join(s.cgroup, c, "cgroup.kill"), []byte("1"), 0)
	}
	return errors.Join(s.removeCgroups(2*time.Second), s.removeDir())
}

// removeCgroups waits, because a process leaves its cgroup some time after it was killed.
func (s state) removeCgroups(patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for _, c := range append(cgroups[:len(cgroups):len(cgroups)], "") {
		for {
			err := unix.Rmdir(filepath.Join(s.cgroup, c))
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", filepath.Join(s.cgroup, c), err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return nil
}

func (s state) removeDir() error {
	err := unix.Unmount(s.bpffs(), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount bpffs: %w", err)
	}
	for _, d := range []string{s.bpffs(), s.dir} {
		// Rmdir and not RemoveAll: should the unmount have been incomplete, pinned objects are not ours to delete.
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove directory %s: %w", d, err)
		}
	}
	return nil
}

// removeAbandoned removes what worlds left whose process and janitor were both killed. It leaves alone
// what still has processes in it, some of which may be about to end.
func removeAbandoned() error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	var names []string
	for _, dir := range []string{root, os.TempDir()} {
		found, _ := filepath.Glob(filepath.Join(dir, namePrefix+"*"))
		names = append(names, found...)
	}
	var errs []error
	for _, path := range names {
		name := filepath.Base(path)
		if !abandoned(name) {
			continue
		}
		s := state{cgroup: filepath.Join(root, name), dir: filepath.Join(os.TempDir(), name)}
		if s.removeCgroups(300*time.Millisecond) == nil {
			errs = append(errs, s.removeDir())
		}
	}
	return errors.Join(errs...)
}

// cgroupRoot finds where cgroup2 is mounted: /sys/fs/cgroup, or below it beside the controllers of version 1.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("find cgroup2: not mounted")
}
