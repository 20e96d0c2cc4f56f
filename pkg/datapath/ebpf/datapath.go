package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// ErrNotSupported says that the hooks cannot work on this host, whatever is tried again. The error around it says
// what is missing.
var ErrNotSupported = errors.New("socket datapath not supported here")

// Options says where to attach and where to pin.
type Options struct {
	// CgroupRoot is the cgroup2 directory whose sockets are served. Empty means the root of the hierarchy.
	CgroupRoot string
	// PinDir is the directory of our pins, in a bpf file system. It is made if need be, and nobody else's.
	PinDir string
	// BPFFS is where to mount a bpf file system if PinDir is in none. Empty means nowhere.
	BPFFS string
	Log   *slog.Logger
}

// Datapath is the socket datapath. It is safe for concurrent use.
type Datapath struct {
	log       *slog.Logger
	canRefuse bool
	least     sizes

	mu       sync.Mutex
	pins     *pins
	links    *links
	maps     *kernelMaps // nil until the first full update if no earlier process left any
	programs programs
	table    *table
	services map[datapath.Name]*service
	synced   bool // a full update was written, so there is something to attach
	attached bool // every hook runs our programs
	closed   bool
}

var _ datapath.Datapath = (*Datapath)(nil)

// Open checks by use that the hooks work, and takes over what an earlier process pinned. It attaches nothing: the
// first full Apply does.
func Open(o Options) (*Datapath, error) { return open(o, smallest) }

func open(o Options, least sizes) (*Datapath, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if unix.Geteuid() != 0 {
		return nil, fmt.Errorf("open socket datapath: not root: %w", ErrNotSupported)
	}
	if err := o.prepareHost(); err != nil {
		return nil, err
	}
	d := &Datapath{log: o.Log, least: least, canRefuse: probeSetRetval(), services: map[datapath.Name]*service{}}
	var err error
	if d.links, err = newLinks(o.PinDir, o.CgroupRoot); err != nil {
		return nil, err
	}
	if d.pins, err = openPins(o.PinDir); err != nil {
		return nil, err
	}
	if err := d.adopt(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if err := d.tryHooks(); err != nil {
		err = errors.Join(err, d.Close())
		if d.maps == nil {
			// Made by us, and empty unless it is another instance's by now: then it stays.
			_ = unix.Rmdir(o.PinDir)
		}
		return nil, err
	}
	return d, nil
}

// prepareHost finds or makes what the kernel must offer outside of the programs.
func (o *Options) prepareHost() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the memory limit of BPF (is BPF allowed here?): %w: %w", err, ErrNotSupported)
	}
	if o.CgroupRoot == "" {
		root, err := findCgroupRoot()
		if err != nil {
			return err
		}
		o.CgroupRoot = root
	}
	if err := checkCgroup(o.CgroupRoot); err != nil {
		return err
	}
	return ensureBPFFS(o.PinDir, o.BPFFS)
}

// adopt takes over pinned maps. Maps that are not ours to write, because of another layout or damage, are left to
// the programs that use them until the first full update replaces them.
func (d *Datapath) adopt() error {
	g, found, err := d.pins.current()
	if err != nil {
		d.log.Warn("pinned maps are unusable and will be replaced", "err", err)
		return nil
	}
	if !found {
		return nil
	}
	if g.layout != layoutVersion {
		d.log.Info("pinned maps have another layout and will be replaced", "layout", g.layout, "want", layoutVersion)
		return nil
	}
	m, err := openMaps(filepath.Join(d.pins.dir, g.String()), false)
	if err != nil {
		d.log.Warn("pinned maps are unusable and will be replaced", "err", err)
		return nil
	}
	t := newTable(m.memory())
	if err := t.adopt(); err != nil {
		return errors.Join(fmt.Errorf("adopt maps: %w", err), m.close())
	}
	if t.repaired > 0 {
		d.log.Warn("pinned maps hold entries that make no sense and will be replaced", "entries", t.repaired)
	}
	d.maps, d.table = m, t
	return nil
}

// tryHooks loads the programs and attaches them where it does no harm. On adopted maps the programs are kept, else
// they and the maps they were tried on go.
func (d *Datapath) tryHooks() (err error) {
	m := d.maps
	if m == nil {
		if m, err = createMaps(sizes{1, 1, 1, 1}, nil); err != nil {
			return fmt.Errorf("try hooks: %w: %w", err, ErrNotSupported)
		}
		defer func() { err = errors.Join(err, m.close()) }()
	}
	p, err := loadPrograms(m, d.canRefuse)
	if err != nil {
		return fmt.Errorf("try hooks: %w: %w", err, ErrNotSupported)
	}
	if m == d.maps {
		d.programs = p
	} else {
		defer func() { err = errors.Join(err, p.close()) }()
	}
	err = tryHooks(d.links.cgroup, filepath.Base(d.pins.dir)+".probe", p)
	if errors.Is(err, unix.EROFS) {
		// In a container the mount may be read-only; attaching works there all the same.
		d.log.Info("hooks not tried: cgroup file system is read-only", "cgroup", d.links.cgroup)
		return nil
	}
	if err != nil {
		return fmt.Errorf("try hooks: %w: %w", err, ErrNotSupported)
	}
	return nil
}

// Apply writes an update. The package comment has the order. The first update must be full; the hooks are attached
// when it is written.
func (d *Datapath) Apply(ctx context.Context, u datapath.Update) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if d.closed {
		return errors.New("apply: datapath is closed")
	}
	if !u.Full && !d.synced {
		return errors.New("apply: first update must be full")
	}
	jobs, spare, faults := d.plan(u)
	if err := d.write(jobs, u.Full, spare); err != nil {
		return errors.Join(append(faults, fmt.Errorf("apply: %w", err))...)
	}
	faults = append(faults, d.finish(jobs)...)
	d.synced = true
	if u.Full || !d.attached {
		if err := d.attach(); err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}

// plan turns an update into jobs. Services that make no sense become errors, and spare are their frontends.
func (d *Datapath) plan(u datapath.Update) (jobs []*job, spare []frontendKey, faults []error) {
	named := make(map[datapath.Name]bool, len(u.Services))
	jobs = make([]*job, 0, len(u.Services)+len(u.Removed))
	for _, s := range u.Services {
		named[s.Name] = true
		wants, err := plan(s, d.canRefuse)
		held := d.services[s.Name]
		if err != nil {
			faults = append(faults, &datapath.ServiceError{Service: s.Name, Err: err})
			spare = append(spare, frontendsOf(s)...)
			if held != nil {
				spare = append(spare, held.frontends...)
			}
			continue
		}
		if held == nil {
			held = &service{}
			d.services[s.Name] = held
		}
		jobs = append(jobs, &job{name: s.Name, service: held, wants: wants})
	}
	gone := u.Removed
	if u.Full {
		gone = nil
		for name := range d.services {
			if !named[name] {
				gone = append(gone, name)
			}
		}
	}
	for _, name := range gone {
		if held := d.services[name]; held != nil && !named[name] {
			jobs = append(jobs, &job{name: name, service: held, removed: true})
		}
	}
	return jobs, spare, faults
}

// write brings jobs into the maps, which are made larger when they must.
func (d *Datapath) write(jobs []*job, full bool, spare []frontendKey) error {
	if full && d.synced {
		before := d.table.repaired
		if err := d.table.audit(); err != nil {
			return err
		}
		if n := d.table.repaired - before; n > 0 {
			d.log.Warn("map entries were changed by somebody else and are repaired", "entries", n)
		}
	}
	if d.maps == nil {
		if err := d.grow(jobs); err != nil {
			return err
		}
	}
	err := d.table.update(jobs, full, spare)
	if !errors.Is(err, errFull) {
		return err
	}
	if err := d.grow(jobs); err != nil {
		return err
	}
	return d.table.update(jobs, full, spare)
}

// finish collects the faults of jobs and forgets Services nothing is left of.
func (d *Datapath) finish(jobs []*job) []error {
	var faults []error
	for _, j := range jobs {
		if j.err != nil {
			faults = append(faults, &datapath.ServiceError{Service: j.name, Err: j.err})
		}
		if j.removed && len(j.service.frontends)+len(j.service.sets) == 0 {
			delete(d.services, j.name)
		}
	}
	return faults
}

// attach makes the hooks run our programs. Until it succeeds every Apply tries again.
func (d *Datapath) attach() error {
	if err := d.links.attach(d.programs, d.maps); err != nil {
		d.attached = false
		return err
	}
	d.attached = true
	if err := d.pins.sweep(); err != nil {
		return fmt.Errorf("remove old maps: %w", err)
	}
	return nil
}

// Close releases the process's handles. The hooks stay attached and served from what is in the maps.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	errs := []error{d.links.close(), d.programs.close()}
	if d.maps != nil {
		errs = append(errs, d.maps.close())
	}
	return errors.Join(append(errs, d.pins.close())...)
}

// Stats returns what was written since Open.
func (d *Datapath) Stats() datapath.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := datapath.Stats{Services: len(d.services)}
	if d.table != nil {
		s.Writes = d.table.writes
	}
	return s
}

// Cleanup detaches the hooks and removes everything Open and Apply left. It is no error if there is nothing.
func Cleanup(o Options) error {
	p, err := lockPins(o.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(p.clear(), p.close())
}
