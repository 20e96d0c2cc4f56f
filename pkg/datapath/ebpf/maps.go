package ebpf

import (
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapNames are all pinned maps, which is all maps but the constants of the programs.
var mapNames = []string{
	bpfMapFrontends4, bpfMapFrontends6, bpfMapSets, bpfMapBackends,
	bpfMapConnected, bpfMapUnconnected, bpfMapCounters,
}

// sizes are the numbers of entries of the maps that grow.
type sizes struct{ frontends4, frontends6, sets, backends int }

// smallest are the sizes of an empty world: under 2 MiB together.
var smallest = sizes{frontends4: 8 << 10, frontends6: 4 << 10, sets: 16 << 10, backends: 32 << 10}

// fit returns sizes for twice a demand, and no smaller than s. The kernel rounds a hash up to a power of two anyway.
func (s sizes) fit(demand sizes) sizes {
	hash := func(n, least int) int { return max(1<<bits.Len(uint(max(2*n-1, 0))), least) }
	array := func(n, least int) int { return max((2*n+arrayStep-1)/arrayStep*arrayStep, least) }
	return sizes{
		frontends4: hash(demand.frontends4, s.frontends4),
		frontends6: hash(demand.frontends6, s.frontends6),
		sets:       array(demand.sets, s.sets),
		backends:   array(demand.backends, s.backends),
	}
}

const arrayStep = 1 << 10

// kernelMaps are the open maps of one generation, sets and backends mapped into memory.
type kernelMaps struct {
	byName   map[string]*ebpf.Map
	sets     []uint64
	backends []bpfBackend
}

// openMaps opens pinned maps. Read-only, for Dump, is the mapping alone: the kernel refuses to map a map opened so.
func openMaps(dir string, readOnly bool) (*kernelMaps, error) {
	m := &kernelMaps{byName: map[string]*ebpf.Map{}}
	for _, name := range mapNames {
		opened, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open map %s: %w", name, err), m.close())
		}
		m.byName[name] = opened
	}
	if err := m.check(); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if err := m.mapMemory(readOnly); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// check compares the maps with those the programs are made for.
func (m *kernelMaps) check() error {
	spec, err := loadBpf()
	if err != nil {
		return err
	}
	for name, opened := range m.byName {
		s := spec.Maps[name]
		if opened.Type() != s.Type || opened.KeySize() != s.KeySize || opened.ValueSize() != s.ValueSize || opened.Flags()&s.Flags != s.Flags {
			return fmt.Errorf("check map %s: %s is not what the programs use", name, opened)
		}
	}
	return nil
}

// createMaps makes empty maps. Those in keep, which hold the state of sockets and programs, are carried over.
func createMaps(s sizes, keep *kernelMaps) (*kernelMaps, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpfMapFrontends4].MaxEntries = uint32(s.frontends4)
	spec.Maps[bpfMapFrontends6].MaxEntries = uint32(s.frontends6)
	spec.Maps[bpfMapSets].MaxEntries = uint32(s.sets)
	spec.Maps[bpfMapBackends].MaxEntries = uint32(s.backends)
	m := &kernelMaps{byName: map[string]*ebpf.Map{}}
	for _, name := range mapNames {
		var made *ebpf.Map
		switch name {
		case bpfMapConnected, bpfMapUnconnected, bpfMapCounters:
			if keep != nil {
				made, err = keep.byName[name].Clone()
				break
			}
			fallthrough
		default:
			made, err = ebpf.NewMap(spec.Maps[name])
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("create map %s: %w", name, err), m.close())
		}
		m.byName[name] = made
	}
	if err := m.mapMemory(false); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// pin makes the maps outlive us, in an existing directory.
func (m *kernelMaps) pin(dir string) error {
	for _, name := range mapNames {
		// A clone, because cilium/ebpf moves the pin of a map that has one.
		c, err := m.byName[name].Clone()
		if err != nil {
			return fmt.Errorf("clone map %s: %w", name, err)
		}
		if err := errors.Join(c.Pin(filepath.Join(dir, name)), c.Close()); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// memory returns the maps as a table sees them.
func (m *kernelMaps) memory() memory {
	f4, f6 := m.byName[bpfMapFrontends4], m.byName[bpfMapFrontends6]
	return memory{
		frontends: &kernelFrontends{f4, f6},
		sets:      m.sets, backends: m.backends,
		limit4: int(f4.MaxEntries()), limit6: int(f6.MaxEntries()),
	}
}

func (m *kernelMaps) sizes() sizes {
	return sizes{
		frontends4: int(m.byName[bpfMapFrontends4].MaxEntries()),
		frontends6: int(m.byName[bpfMapFrontends6].MaxEntries()),
		sets:       len(m.sets),
		backends:   len(m.backends),
	}
}

func (m *kernelMaps) mapMemory(readOnly bool) error {
	var err error
	if m.sets, err = mapEntries[uint64](m.byName[bpfMapSets], readOnly); err != nil {
		return fmt.Errorf("map %s into memory: %w", bpfMapSets, err)
	}
	if m.backends, err = mapEntries[bpfBackend](m.byName[bpfMapBackends], readOnly); err != nil {
		return fmt.Errorf("map %s into memory: %w", bpfMapBackends, err)
	}
	return nil
}

// close unmaps and closes; what is pinned or used by an attached program stays.
func (m *kernelMaps) close() error {
	errs := []error{unmapEntries(m.sets), unmapEntries(m.backends)}
	m.sets, m.backends = nil, nil
	for _, opened := range m.byName {
		errs = append(errs, opened.Close())
	}
	return errors.Join(errs...)
}

// mapEntries maps the values of an array. cilium/ebpf's Memory copies, and we need one atomic store.
func mapEntries[T any](m *ebpf.Map, readOnly bool) ([]T, error) {
	var entry T
	if m.ValueSize() != uint32(unsafe.Sizeof(entry)) {
		return nil, fmt.Errorf("values are %d bytes, not %d", m.ValueSize(), unsafe.Sizeof(entry))
	}
	protection := unix.PROT_READ | unix.PROT_WRITE
	if readOnly {
		protection = unix.PROT_READ
	}
	b, err := unix.Mmap(m.FD(), 0, mappedLen[T](int(m.MaxEntries())), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), m.MaxEntries()), nil
}

func unmapEntries[T any](entries []T) error {
	if entries == nil {
		return nil
	}
	// unix.Munmap knows a mapping by its first byte and its capacity.
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(entries))), mappedLen[T](len(entries))))
}

func mappedLen[T any](n int) int {
	var entry T
	page := unix.Getpagesize()
	return (n*int(unsafe.Sizeof(entry)) + page - 1) / page * page
}
