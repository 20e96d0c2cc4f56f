package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// findCgroupRoot returns where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside cgroup v1.
func findCgroupRoot() (root string, err error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup root: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	root, err = parseMounts(f, "cgroup2")
	if err != nil {
		return "", fmt.Errorf("find cgroup root: %w", err)
	}
	if root == "" {
		return "", fmt.Errorf("find cgroup root: no cgroup2 is mounted: %w", ErrNotSupported)
	}
	return root, nil
}

// parseMounts returns the first mount point of a file system type, or nothing.
func parseMounts(r io.Reader, fstype string) (string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == fstype {
			return unescape.Replace(fields[1]), nil
		}
	}
	return "", lines.Err()
}

func checkCgroup(path string) error {
	is, err := isFilesystem(path, unix.CGROUP2_SUPER_MAGIC)
	if err != nil {
		return fmt.Errorf("check cgroup root: %w: %w", err, ErrNotSupported)
	}
	if !is {
		return fmt.Errorf("check cgroup root: %s is not in a cgroup2 file system: %w", path, ErrNotSupported)
	}
	return nil
}

// MountBPFFS mounts a bpf file system on dir unless there is one. dir must exist.
func MountBPFFS(dir string) error {
	is, err := isFilesystem(dir, unix.BPF_FS_MAGIC)
	if err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	if is {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}

// ensureBPFFS makes sure that pinDir is, or will be, in a bpf file system.
func ensureBPFFS(pinDir, mountOn string) error {
	if strings.Contains(filepath.Base(pinDir), ".") {
		return fmt.Errorf("check pin directory: %s: a bpf file system allows no dot in names", pinDir)
	}
	parent, err := existing(pinDir)
	if err != nil {
		return err
	}
	if is, err := isFilesystem(parent, unix.BPF_FS_MAGIC); is || err != nil {
		return err
	}
	if mountOn == "" {
		return fmt.Errorf("check pin directory: %s is not in a bpf file system: %w", pinDir, ErrNotSupported)
	}
	if rel, err := filepath.Rel(mountOn, pinDir); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Errorf("check pin directory: %s is not below the bpf file system %s: %w", pinDir, mountOn, ErrNotSupported)
	}
	if err := MountBPFFS(mountOn); err != nil {
		return fmt.Errorf("%w: %w", err, ErrNotSupported)
	}
	return nil
}

// existing returns path or its nearest parent that exists.
func existing(path string) (string, error) {
	for {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("check pin directory: %w", err)
		}
		path = filepath.Dir(path)
	}
}

func isFilesystem(path string, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("stat file system of %s: %w", path, err)
	}
	return int64(st.Type) == magic, nil
}
