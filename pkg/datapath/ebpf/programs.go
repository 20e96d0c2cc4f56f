package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// hook is a place in the kernel and the program that belongs there. The pin has its name.
type hook struct {
	name   string
	attach ebpf.AttachType
}

// hooks are in the order they are attached and updated: nothing is translated before it can be shown reversed.
var hooks = []hook{
	{bpfProgGetpeername4, ebpf.AttachCgroupInet4GetPeername},
	{bpfProgGetpeername6, ebpf.AttachCgroupInet6GetPeername},
	{bpfProgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
	{bpfProgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
	{bpfProgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{bpfProgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	{bpfProgConnect4, ebpf.AttachCGroupInet4Connect},
	{bpfProgConnect6, ebpf.AttachCGroupInet6Connect},
}

// programs are the loaded programs by hook.
type programs map[string]*ebpf.Program

// loadPrograms loads the programs on maps. canRefuse says that the kernel has bpf_set_retval.
func loadPrograms(m *kernelMaps, canRefuse bool) (programs, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[bpfVarHasSetRetval].Set(canRefuse); err != nil {
		return nil, fmt.Errorf("set %s: %w", bpfVarHasSetRetval, err)
	}
	if err := spec.Variables[bpfVarHostNetns].Set(netnsCookie()); err != nil {
		return nil, fmt.Errorf("set %s: %w", bpfVarHostNetns, err)
	}
	for name, used := range m.byName {
		spec.Maps[name].MaxEntries = used.MaxEntries()
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: m.byName})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer c.Close()
	p := programs{}
	for _, h := range hooks {
		p[h.name] = c.DetachProgram(h.name)
	}
	return p, nil
}

func (p programs) close() error {
	var errs []error
	for _, program := range p {
		errs = append(errs, program.Close())
	}
	return errors.Join(errs...)
}

// same says whether a program in the kernel is ours: the same code on the same maps. The map of constants is ours
// alone in each load, so it does not count.
func same(id ebpf.ProgramID, ours *ebpf.Program, m *kernelMaps) (is bool, err error) {
	theirs, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false, fmt.Errorf("open program %d: %w", id, err)
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()
	a, err := theirs.Info()
	if err != nil {
		return false, fmt.Errorf("read program %d: %w", id, err)
	}
	b, err := ours.Info()
	if err != nil {
		return false, fmt.Errorf("read own program: %w", err)
	}
	if a.Tag != b.Tag {
		return false, nil
	}
	in, _ := a.MapIDs()
	want, _ := b.MapIDs()
	for _, used := range m.byName {
		info, err := used.Info()
		if err != nil {
			return false, fmt.Errorf("read map: %w", err)
		}
		id, _ := info.ID()
		if slices.Contains(want, id) && !slices.Contains(in, id) {
			return false, nil
		}
	}
	return true, nil
}

// probeSetRetval finds out by use whether a connect hook may choose its errno.
func probeSetRetval() bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:       "probe_retval",
		Type:       ebpf.CGroupSockAddr,
		AttachType: ebpf.AttachCGroupInet4Connect,
		License:    "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, -111),
			asm.FnSetRetval.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}

// netnsCookie returns the cookie of this network namespace, 0 if the kernel does not tell it (before 5.14).
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}
