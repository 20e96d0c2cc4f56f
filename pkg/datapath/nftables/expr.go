package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The functions of this file each build one phrase of a rule; the comment is the phrase as nft prints it. A rule
// is the concatenation of phrases, so that base.go reads like the listing it produces.

// Registers as nft itself allocates them: the first part of a concatenation in the 128-bit register 1, the
// following parts in the 32-bit registers behind the address.
const regFirst = 1

type phrase []expr.Any

func join(parts ...phrase) phrase {
	var all phrase
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// loadTuple loads `ip daddr . meta l4proto . th dport` and returns the next free 32-bit register.
func (f *family) loadTuple() (phrase, uint32) {
	next := f.nextReg()
	return phrase{
		f.loadAddr(f.daddrOffset, regFirst),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: next + 1},
	}, next + 2
}

// nextReg is the 32-bit register right behind an address in register 1 (register 8 is its first quarter).
func (f *family) nextReg() uint32 { return 8 + f.addrLen/4 }

func (f *family) loadAddr(offset, reg uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen, DestRegister: reg}
}

// setPriorityFrom is `meta priority set ip daddr . meta l4proto . th dport map @m`. A miss ends the rule.
func (f *family) setPriorityFrom(m *nftables.Set) phrase {
	load, _ := f.loadTuple()
	return append(load,
		&expr.Lookup{SourceRegister: regFirst, DestRegister: regFirst, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: regFirst})
}

// tupleIn is `ip daddr . meta l4proto . th dport @s`.
func (f *family) tupleIn(s *nftables.Set) phrase {
	load, _ := f.loadTuple()
	return append(load, &expr.Lookup{SourceRegister: regFirst, SetName: s.Name, SetID: s.ID})
}

// sourceNotIn is `ip daddr . meta l4proto . th dport . ip saddr != @s`.
func (f *family) sourceNotIn(s *nftables.Set) phrase {
	load, reg := f.loadTuple()
	return append(load, f.loadAddr(f.saddrOffset, reg),
		&expr.Lookup{SourceRegister: regFirst, SetName: s.Name, SetID: s.ID, Invert: true})
}

// daddrIn is `ip daddr @s`.
func (f *family) daddrIn(s *nftables.Set) phrase {
	return phrase{f.loadAddr(f.daddrOffset, regFirst),
		&expr.Lookup{SourceRegister: regFirst, SetName: s.Name, SetID: s.ID}}
}

// pairIn is `ip saddr . ip daddr @s`.
func (f *family) pairIn(s *nftables.Set) phrase {
	return phrase{f.loadAddr(f.saddrOffset, regFirst), f.loadAddr(f.daddrOffset, f.nextReg()),
		&expr.Lookup{SourceRegister: regFirst, SetName: s.Name, SetID: s.ID}}
}

// sourceWithin is `ip saddr <prefix>`.
func (f *family) sourceWithin(p netip.Prefix) phrase {
	p = p.Masked()
	return phrase{f.loadAddr(f.saddrOffset, regFirst),
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: f.addrLen,
			Mask: prefixMask(p.Bits(), int(f.addrLen)), Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: p.Addr().AsSlice()}}
}

func prefixMask(bits, size int) []byte {
	mask := make([]byte, size)
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// inputInterface is `iifname "name"`, or `iifname "prefix*"` for a name that ends in an asterisk.
func inputInterface(name string) phrase {
	data := append([]byte(name), 0)
	if n := len(name); n > 0 && name[n-1] == '*' {
		data = []byte(name[:n-1])
	} else {
		data = append(data, make([]byte, max(0, unix.IFNAMSIZ-len(data)))...)
	}
	return phrase{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: regFirst},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: data}}
}

// sourceIsLocal is `fib saddr type local`.
func sourceIsLocal() phrase {
	return phrase{&expr.Fib{Register: regFirst, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

// masked loads a 32-bit field of the packet's metadata and masks it: `meta <key> & mask`.
func masked(key expr.MetaKey, mask uint32) phrase {
	return phrase{&expr.Meta{Key: key, Register: regFirst}, bitwise(mask, 0)}
}

func bitwise(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor)}
}

// equals is `== v` for what the phrase before it loaded.
func equals(v uint32) phrase {
	return phrase{&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: binaryutil.NativeEndian.PutUint32(v)}}
}

// keepPriority is `meta priority set meta priority & mask`.
func keepPriority(mask uint32) phrase {
	return append(masked(expr.MetaKeyPRIORITY, mask),
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: regFirst})
}

// clearPriority is `meta priority set none`.
func clearPriority() phrase {
	return phrase{&expr.Immediate{Register: regFirst, Data: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: regFirst}}
}

// setMark is `meta mark set meta mark | bit`, clearMark `meta mark set meta mark & ~bit`.
func setMark(bit uint32) phrase   { return changeMark(^bit, bit) }
func clearMark(bit uint32) phrase { return changeMark(^bit, 0) }

func changeMark(mask, xor uint32) phrase {
	return phrase{&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst}, bitwise(mask, xor),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regFirst}}
}

// ctHas is `ct <key> & bit != 0`, printed as `ct state new` or `ct status dnat`.
func ctHas(key expr.CtKey, bit uint32) phrase { return ctBit(key, bit, expr.CmpOpNeq) }

// ctLacks is the opposite of ctHas.
func ctLacks(key expr.CtKey, bit uint32) phrase { return ctBit(key, bit, expr.CmpOpEq) }

func ctBit(key expr.CtKey, bit uint32, op expr.CmpOp) phrase {
	return phrase{&expr.Ct{Key: key, Register: regFirst}, bitwise(bit, 0),
		&expr.Cmp{Op: op, Register: regFirst, Data: make([]byte, 4)}}
}

// dnatToSlot is `dnat to meta priority . numgen random mod n map @backends`. A miss ends the rule.
func (f *family) dnatToSlot(n uint32, backends *nftables.Set) phrase {
	return phrase{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: regFirst},
		&expr.Numgen{Register: 9, Modulus: n, Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: regFirst, DestRegister: regFirst, IsDestRegSet: true, SetName: backends.Name, SetID: backends.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.table.Family), RegAddrMin: regFirst, RegProtoMin: f.nextReg(), Specified: true},
	}
}

// vmap is `vmap @m` for what the phrase before it loaded.
func vmap(m *nftables.Set) phrase {
	return phrase{&expr.Lookup{SourceRegister: regFirst, DestRegister: 0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID}}
}

func masquerade() phrase { return phrase{&expr.Masq{FullyRandom: true}} }

func drop() phrase { return phrase{&expr.Verdict{Kind: expr.VerdictDrop}} }

func goTo(chain string) phrase { return phrase{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// opensTCP is `tcp flags & (fin | syn | rst | ack) == syn`.
func opensTCP() phrase {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return phrase{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regFirst},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: []byte{syn}}}
}

// reset is `reject with tcp reset`.
func reset() phrase { return phrase{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

// reject is `reject`, with an ICMP port unreachable.
func (f *family) reject() phrase {
	return phrase{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.portUnreachable}}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
