package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// layoutVersion changes with the meaning of a set, a map or a static rule. A table of another layout is replaced as a whole, in
// one transaction.
const layoutVersion = 1

// Options says where the tables are and how they mark packets.
type Options struct {
	// Table is the name of the tables, one in the family ip and one in ip6.
	Table string
	// MasqueradeMark is the one bit of a packet's mark that is set between the choice of a backend and
	// postrouting. Zero means kube-proxy's bit, 0x4000.
	MasqueradeMark uint32
	Log            *slog.Logger
}

// Datapath is the nftables datapath. It is safe for one caller at a time.
type Datapath struct {
	opts     Options
	log      *slog.Logger
	conn     *conn
	lister   *lister
	families []*family // IPv4, and IPv6 where the kernel has it

	services map[datapath.Name]*state
	numbers  map[bool]*numbers        // by IPv6
	shared   map[element]int          // how many Services hold an element that several may hold
	picks    map[bool]map[uint32]bool // pick chains that exist, by IPv6 and pick
	pods     datapath.LocalPods
	pending  []*family // whose static part goes into the next transaction
	saidOnce sync.Once // about session affinity

	// strays is what the kernel holds and no Service has claimed yet. It is nil except while the kernel's
	// elements are being adopted.
	strays *strays
	// adopted says that services is what the kernel holds. It is false at start and after a failure.
	adopted bool
	whole   bool // a full update was seen: without one, nothing may be taken for left over
	stats   datapath.Stats
}

var _ datapath.Datapath = (*Datapath)(nil)

// Open connects to the kernel and checks by use that it can do what the tables need: it writes and deletes them, under
// another name, in one transaction. A kernel that cannot do it for IPv6 serves IPv4 alone.
func Open(o Options) (*Datapath, error) {
	d, err := connect(o)
	if err != nil {
		return nil, err
	}
	if err := d.probe(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// connect is Open without writing anything: enough to read the tables.
func connect(o Options) (*Datapath, error) {
	if o.MasqueradeMark == 0 {
		o.MasqueradeMark = 0x4000
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Datapath{opts: o, log: o.Log, services: map[datapath.Name]*state{},
		families: []*family{newFamily(false, o.Table), newFamily(true, o.Table)}}
	var err error
	if d.conn, err = dial(); err != nil {
		return nil, err
	}
	if d.lister, err = newLister(); err != nil {
		return nil, errors.Join(err, d.conn.close())
	}
	return d, nil
}

func (d *Datapath) probe() error {
	for i, served := range d.families {
		f := newFamily(served.ipv6, d.opts.Table+"-probe")
		d.picks = map[bool]map[uint32]bool{f.ipv6: {}}
		d.writeBase(f, "base-probe")
		d.conn.DelTable(f.table)
		err := d.conn.flush()
		switch {
		case err != nil && !f.ipv6:
			return fmt.Errorf("try nftables (does the kernel have nf_tables with nat, fib, numgen and reject, and are you root?): %w", err)
		case err != nil:
			d.log.Warn("nftables cannot serve IPv6 here", "err", err)
			d.families = d.families[:i]
		}
	}
	return nil
}

// Close closes the connections to the kernel and leaves the tables.
func (d *Datapath) Close() error { return errors.Join(d.conn.close(), d.lister.close()) }

// Stats returns what was written since Open.
func (d *Datapath) Stats() datapath.Stats {
	s := d.stats
	s.Services = len(d.services)
	return s
}

// Apply implements datapath.Datapath. Every Service changes in one transaction of the kernel, so a packet sees a Service
// as it was or as it is, and nothing between.
func (d *Datapath) Apply(ctx context.Context, u datapath.Update) error {
	if u.LocalPods != nil {
		d.pods = *u.LocalPods
	}
	switch {
	case u.Full:
		d.whole = true
		u.Removed = d.missingFrom(u.Services)
	case !d.whole:
		return errors.New("apply update: the first one must be full")
	case len(u.Services)+len(u.Removed) == 0 && d.adopted:
		if err := d.audit(); err != nil {
			return err
		}
	}
	want := u.Services
	if !d.adopted {
		// What was held before is planned again, against what the kernel really has.
		want = d.withHeld(u)
		if err := d.adopt(); err != nil {
			return err
		}
	}
	// The static part depends on nothing else that an update brings: an ordinary change does not look at it.
	if d.strays != nil || u.LocalPods != nil {
		if err := d.ensureBase(); err != nil {
			return err
		}
	}
	changes, errs := d.plan(u.Removed, want)
	failed, err := d.commit(ctx, changes)
	errs = append(errs, failed...)
	if err != nil {
		// What the kernel has is not known: look before the next write.
		d.adopted = false
		return errors.Join(append(errs, err)...)
	}
	if d.strays != nil {
		errs = append(errs, d.removeStrays(failedOf(errs, want)))
	}
	return errors.Join(errs...)
}

// audit finds out whether a stranger removed a table or its rules; what follows in Apply then writes them again.
func (d *Datapath) audit() error {
	for _, f := range d.families {
		chains, err := d.lister.chains(f)
		if err != nil {
			return fmt.Errorf("audit nftables table %s: %w", f, err)
		}
		intact := slices.Contains(chains, f.base)
		if intact {
			if intact, err = d.hasRules(f, "services"); err != nil {
				return fmt.Errorf("audit nftables table %s: %w", f, err)
			}
		}
		if !intact {
			d.log.Warn("somebody removed the nftables table or its rules, writing them again", "table", f.String())
			d.adopted = false
		}
	}
	return nil
}

// failedOf returns the Services among all that errs speaks of.
func failedOf(errs []error, all []*datapath.Service) []*datapath.Service {
	names := map[datapath.Name]bool{}
	for _, err := range errs {
		var one *datapath.ServiceError
		if errors.As(err, &one) {
			names[one.Service] = true
		}
	}
	var failed []*datapath.Service
	for _, s := range all {
		if names[s.Name] {
			failed = append(failed, s)
		}
	}
	return failed
}

// missingFrom returns the Services that are held and not among all.
func (d *Datapath) missingFrom(all []*datapath.Service) []datapath.Name {
	keep := make(map[datapath.Name]bool, len(all))
	for _, s := range all {
		keep[s.Name] = true
	}
	var gone []datapath.Name
	for n := range d.services {
		if !keep[n] {
			gone = append(gone, n)
		}
	}
	slices.SortFunc(gone, datapath.Name.Compare)
	return gone
}

// withHeld returns the Services of u and those held that u does not speak of.
func (d *Datapath) withHeld(u datapath.Update) []*datapath.Service {
	spoken := make(map[datapath.Name]bool, len(u.Services)+len(u.Removed))
	for _, s := range u.Services {
		spoken[s.Name] = true
	}
	for _, n := range u.Removed {
		spoken[n] = true
	}
	all := slices.Clone(u.Services)
	for _, n := range slices.SortedFunc(maps.Keys(d.services), datapath.Name.Compare) {
		if !spoken[n] {
			all = append(all, d.services[n].service)
		}
	}
	return all
}

// change is the way of one Service from what the kernel holds to what it should hold.
type change struct {
	name     datapath.Name
	old, new *state    // nil: none
	want     []element // of new
	del, add []element
	fresh    []setOf // numbers taken for new
}

// plan computes the changes of Services that go and of those wanted. A Service that cannot be planned is left as it is.
func (d *Datapath) plan(gone []datapath.Name, want []*datapath.Service) ([]*change, []error) {
	changes := make([]*change, 0, len(gone)+len(want))
	var errs []error
	for _, n := range gone {
		if old := d.services[n]; old != nil {
			changes = append(changes, &change{name: n, old: old})
		}
	}
	for _, s := range want {
		c, err := d.planService(s)
		if err != nil {
			errs = append(errs, &datapath.ServiceError{Service: s.Name, Err: err})
			continue
		}
		changes = append(changes, c)
	}
	return changes, errs
}

func (d *Datapath) planService(s *datapath.Service) (*change, error) {
	if len(d.families) == 1 {
		s = withoutIPv6(s)
	}
	d.sayWhatIsMissing(s)
	c := &change{name: s.Name, old: d.services[s.Name]}
	taken := map[setOf]bool{}
	if d.strays != nil {
		// While adopting, two Services may lead to one set: one of them got a frontend of the other meanwhile.
		taken = d.strays.taken
	}
	var err error
	c.new, err = assign(s, d.originOf(c.old), taken, func(ipv6 bool) (setNumber, error) {
		n, err := d.numbers[ipv6].take()
		if err == nil {
			c.fresh = append(c.fresh, setOf{ipv6, n})
		}
		return n, err
	})
	if err == nil {
		c.want, err = c.new.elements()
	}
	if err != nil {
		d.giveBack(c.fresh)
		return nil, err
	}
	return c, nil
}

// sayWhatIsMissing warns, once, that connections of a Service with affinity are balanced at random.
func (d *Datapath) sayWhatIsMissing(s *datapath.Service) {
	for i := range s.Ports {
		if s.Ports[i].Affinity > 0 {
			d.saidOnce.Do(func() {
				d.log.Warn("session affinity is not implemented yet: connections are balanced at random", "service", s.Name)
			})
		}
	}
}

func (d *Datapath) giveBack(sets []setOf) {
	for _, s := range sets {
		d.numbers[s.ipv6].release(s.number)
	}
}

func withoutIPv6(s *datapath.Service) *datapath.Service {
	isIPv6 := func(p datapath.Port) bool { return p.IPv6 }
	return &datapath.Service{Name: s.Name, Ports: slices.DeleteFunc(slices.Clone(s.Ports), isIPv6)}
}

// originOf is where a Service's sets are now: in its old state, or in the kernel's elements while those are adopted.
func (d *Datapath) originOf(old *state) origin {
	if d.strays != nil {
		return d.strays
	}
	return old
}

// set implements origin for a Service that is held; a nil state has nothing.
func (st *state) set(a datapath.Addr, inside bool) (slotted, bool) {
	if st == nil {
		return slotted{}, false
	}
	for i := range st.service.Ports {
		p := &st.service.Ports[i]
		if p.Protocol != a.Protocol || p.IPv6 != a.Addr().Is6() {
			continue
		}
		for k := range p.Frontends {
			if f := &p.Frontends[k]; p.FrontendAddr(f) == a {
				route := f.Outside
				if inside {
					route = f.Inside
				}
				have := st.sets[i][route.Set]
				return have, have.number != 0
			}
		}
	}
	return slotted{}, false
}
