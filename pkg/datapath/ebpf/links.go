package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// links are the attached hooks by name, each pinned. They stay open so that a removed pin detaches nothing.
type links struct {
	dir    string // where they are pinned
	cgroup string
	id     uint64 // of the cgroup
	byName map[string]link.Link
}

func newLinks(dir, cgroup string) (*links, error) {
	id, err := cgroupID(cgroup)
	if err != nil {
		return nil, err
	}
	return &links{dir: dir, cgroup: cgroup, id: id, byName: map[string]link.Link{}}, nil
}

// cgroupID returns the id the kernel knows a cgroup by, which is the number of its inode.
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

// attach makes every hook run our program, and changes nothing where it does already.
func (l *links) attach(p programs, m *kernelMaps) error {
	for _, h := range hooks {
		if err := l.attachHook(h, p[h.name], m); err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.name, l.cgroup, err)
		}
	}
	return nil
}

func (l *links) attachHook(h hook, p *ebpf.Program, m *kernelMaps) error {
	current, err := l.open(h)
	if err != nil {
		return err
	}
	if current == nil {
		return l.create(h, p)
	}
	info, err := current.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if cg := info.Cgroup(); cg == nil || cg.CgroupId != l.id {
		// Another cgroup, or none: the cgroup is gone or somebody detached the link.
		return l.create(h, p)
	}
	ours, err := same(info.Program, p, m)
	if err != nil {
		return err
	}
	if !ours {
		if err := current.Update(p); err != nil {
			return fmt.Errorf("update link: %w", err)
		}
	}
	return l.ensurePin(h)
}

// open returns the link of a hook, or nil if there is none.
func (l *links) open(h hook) (link.Link, error) {
	if current, ok := l.byName[h.name]; ok {
		return current, nil
	}
	current, err := link.LoadPinnedLink(filepath.Join(l.dir, h.name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link: %w", err)
	}
	l.byName[h.name] = current
	return current, nil
}

// create attaches a new link and puts it in the place of one that may be there.
func (l *links) create(h hook, p *ebpf.Program) error {
	created, err := link.AttachCgroup(link.CgroupOptions{Path: l.cgroup, Attach: h.attach, Program: p})
	if err != nil {
		return fmt.Errorf("create link: %w", err)
	}
	old := l.byName[h.name]
	l.byName[h.name] = created
	err = l.pin(h)
	if old != nil {
		err = errors.Join(err, old.Close())
	}
	return err
}

// ensurePin brings a pin back that somebody removed.
func (l *links) ensurePin(h hook) error {
	if _, err := os.Lstat(filepath.Join(l.dir, h.name)); err == nil {
		return nil
	}
	return l.pin(h)
}

// pin pins under another name and renames, so that an older pin is replaced in one step.
func (l *links) pin(h hook) error {
	final := filepath.Join(l.dir, h.name)
	fresh := final + "-new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale pin: %w", err)
	}
	// cilium/ebpf would move the pin it remembers, which is gone or not ours to move.
	if err := l.byName[h.name].Unpin(); err != nil {
		return fmt.Errorf("forget pin: %w", err)
	}
	if err := l.byName[h.name].Pin(fresh); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	if err := os.Rename(fresh, final); err != nil {
		return fmt.Errorf("replace pinned link: %w", err)
	}
	return nil
}

func (l *links) close() error {
	var errs []error
	for name, open := range l.byName {
		errs = append(errs, open.Close())
		delete(l.byName, name)
	}
	return errors.Join(errs...)
}

// tryHooks attaches every program to a cgroup made for it below root and removes it again: the kernel has
// what we need if and only if that works.
func tryHooks(root, name string, p programs) error {
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	var errs []error
	for _, h := range hooks {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: h.attach, Program: p[h.name]})
		if err != nil {
			errs = append(errs, fmt.Errorf("attach %s: %w", h.name, err))
			continue
		}
		errs = append(errs, l.Close())
	}
	if err := os.Remove(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
	}
	return errors.Join(errs...)
}
