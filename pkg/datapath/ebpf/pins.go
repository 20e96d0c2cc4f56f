package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// layoutVersion changes with bpf/types.h and the meaning of the maps. Maps of another layout are never written: new
// ones take their place.
const layoutVersion = 1

// mapsLink is the symbolic link to the directory of the maps in use.
const mapsLink = "maps"

// generation names a directory of maps: its layout and a number that differs from its predecessor's.
type generation struct{ layout, number int }

func (g generation) String() string { return fmt.Sprintf("%s-v%d-%d", mapsLink, g.layout, g.number) }

func parseGeneration(name string) (generation, bool) {
	var g generation
	rest, ok := strings.CutPrefix(name, mapsLink+"-v")
	layout, number, cut := strings.Cut(rest, "-")
	var errs [2]error
	g.layout, errs[0] = strconv.Atoi(layout)
	g.number, errs[1] = strconv.Atoi(number)
	return g, ok && cut && errs[0] == nil && errs[1] == nil
}

// pins is the pin directory, locked against another agent.
type pins struct {
	dir  string
	lock *os.File
}

// openPins makes the directory if need be and locks it.
func openPins(dir string) (*pins, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create pin directory: %w", err)
	}
	return lockPins(dir)
}

func lockPins(dir string) (*pins, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("a running instance has it")
		}
		return nil, errors.Join(fmt.Errorf("lock pin directory %s: %w", dir, err), f.Close())
	}
	return &pins{dir: dir, lock: f}, nil
}

func (p *pins) close() error { return p.lock.Close() }

// current returns the generation in use, false if there is none or it has no name of ours.
func (p *pins) current() (generation, bool, error) {
	target, err := os.Readlink(filepath.Join(p.dir, mapsLink))
	if errors.Is(err, fs.ErrNotExist) {
		return generation{}, false, nil
	}
	if err != nil {
		return generation{}, false, fmt.Errorf("read link to maps: %w", err)
	}
	g, ok := parseGeneration(target)
	return g, ok, nil
}

// publish pins complete maps as the next generation and makes it the one in use.
func (p *pins) publish(m *kernelMaps) error {
	old, _, err := p.current()
	if err != nil {
		return err
	}
	next := generation{layoutVersion, old.number + 1}
	dir := filepath.Join(p.dir, next.String())
	if err := removeTree(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create directory of maps: %w", err)
	}
	if err := m.pin(dir); err != nil {
		return errors.Join(err, removeTree(dir))
	}
	fresh := filepath.Join(p.dir, mapsLink+"-new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale link to maps: %w", err)
	}
	if err := os.Symlink(next.String(), fresh); err != nil {
		return fmt.Errorf("link to maps: %w", err)
	}
	if err := os.Rename(fresh, filepath.Join(p.dir, mapsLink)); err != nil {
		return fmt.Errorf("replace link to maps: %w", err)
	}
	return nil
}

// sweep removes the pins of generations that are not in use.
func (p *pins) sweep() error {
	current, _, err := p.current()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("read pin directory: %w", err)
	}
	for _, e := range entries {
		if g, ok := parseGeneration(e.Name()); ok && g != current {
			if err := removeTree(filepath.Join(p.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// clear removes everything, the hooks that translate first.
func (p *pins) clear() error {
	var errs []error
	for i := len(hooks) - 1; i >= 0; i-- {
		if err := detach(filepath.Join(p.dir, hooks[i].name)); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", hooks[i].name, err))
		}
	}
	return errors.Join(append(errs, removeTree(p.dir))...)
}

// detach makes a pinned link do nothing, at once: the kernel releases a link some time after its last pin.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(l.Detach(), l.Close())
}

// removeTree removes a directory of pins. Nothing to remove is no error.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}
