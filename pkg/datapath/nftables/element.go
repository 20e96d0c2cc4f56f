package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// element is one element of one set or map, its key and value encoded as the kernel has them. It is comparable.
type element struct {
	ipv6 bool
	set  setKind
	key  string
	end  string // last key of a range; empty for a single key
	val  string // empty in a set
}

// id is the element without its value: what two elements of one set cannot have in common.
func (e element) id() element {
	e.val = ""
	return e
}

// Every part of a concatenation is padded to a multiple of 32 bits.
func tupleKey(a datapath.Addr) string {
	b := append(make([]byte, 0, 40), a.Addr().AsSlice()...)
	b = append(b, byte(a.Protocol), 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(b, a.Port()), 0, 0))
}

func tupleAddr(key string) (datapath.Addr, error) {
	b := []byte(key)
	ip, ok := netip.AddrFromSlice(b[:max(0, len(b)-8)])
	if !ok {
		return datapath.Addr{}, fmt.Errorf("decode frontend key of %d bytes", len(b))
	}
	rest := b[len(b)-8:]
	port := binary.BigEndian.Uint16(rest[4:])
	return datapath.Addr{AddrPort: netip.AddrPortFrom(ip, port), Protocol: datapath.Protocol(rest[0])}, nil
}

func slotKey(n setNumber, slot int) string {
	return string(append(native32(n.key()), native32(uint32(slot))...))
}

func slotOf(key string) (n setNumber, slot int) {
	b := []byte(key)
	return ref(binary.NativeEndian.Uint32(b)).set(), int(binary.NativeEndian.Uint32(b[4:]))
}

func backendVal(a netip.AddrPort) string {
	b := append(make([]byte, 0, 20), a.Addr().AsSlice()...)
	return string(append(binary.BigEndian.AppendUint16(b, a.Port()), 0, 0))
}

func backendOf(val string) netip.AddrPort {
	b := []byte(val)
	ip, _ := netip.AddrFromSlice(b[:len(b)-4])
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-4:]))
}

func (r ref) val() string { return string(native32(uint32(r))) }

func refOf(val string) ref { return ref(binary.NativeEndian.Uint32([]byte(val))) }

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	mask := prefixMask(p.Bits(), len(b))
	for i := range b {
		b[i] |= ^mask[i]
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// toKernel returns the element as google/nftables sends it.
func (e element) toKernel() nftables.SetElement {
	k := nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.end)}
	if e.set == picksMap {
		k.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.val}
	} else {
		k.Val = []byte(e.val)
	}
	return k
}
