package ebpf

import (
	"encoding/binary"
	"net/netip"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// setID is the index of a set in the sets map.
type setID uint32

// frontendKey is a frontend's identity in either family, IPv4 as ::ffff:a.b.c.d.
type frontendKey = bpfFrontends6Key

// mappedPrefix is the third word of ::ffff:a.b.c.d.
var mappedPrefix = binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})

func networkPort(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

func hostPort(p uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, p))
}

func words(a netip.Addr) [4]uint32 {
	b := a.As16()
	var w [4]uint32
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func address(w [4]uint32) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	return netip.AddrFrom16(b).Unmap()
}

func encodeFrontend(a datapath.Addr) frontendKey {
	return frontendKey{Ip: words(a.Addr()), Port: networkPort(a.Port()), Protocol: uint8(a.Protocol)}
}

func decodeFrontend(k frontendKey) datapath.Addr {
	return datapath.Addr{
		AddrPort: netip.AddrPortFrom(address(k.Ip), hostPort(k.Port)),
		Protocol: datapath.Protocol(k.Protocol),
	}
}

func isIPv4(k frontendKey) bool { return k.Ip[0] == 0 && k.Ip[1] == 0 && k.Ip[2] == mappedPrefix }

func narrow(k frontendKey) bpfFrontends4Key {
	return bpfFrontends4Key{Ip: k.Ip[3], Port: k.Port, Protocol: k.Protocol}
}

func widen(k bpfFrontends4Key) frontendKey {
	return frontendKey{Ip: [4]uint32{0, 0, mappedPrefix, k.Ip}, Port: k.Port, Protocol: k.Protocol}
}

// fingerprint is computed in bpf/lookup.h too.
func fingerprint(k frontendKey) uint32 {
	const factor = 0x9e3779b1
	h := k.Ip[0]
	for _, w := range []uint32{k.Ip[1], k.Ip[2], k.Ip[3], uint32(k.Port)<<8 | uint32(k.Protocol)} {
		h = h*factor ^ w
	}
	return h * factor
}

func frontendWord(k frontendKey, id setID) uint64 { return uint64(fingerprint(k))<<32 | uint64(id) }

func decodeFrontendWord(w uint64) (print uint32, id setID) { return uint32(w >> 32), setID(w) }

func setWord(offset, count uint32) uint64 { return uint64(count)<<32 | uint64(offset) }

func decodeSetWord(w uint64) (offset, count uint32) { return uint32(w), uint32(w >> 32) }

func encodeBackend(a netip.AddrPort) bpfBackend {
	return bpfBackend{Ip: words(a.Addr()), Port: networkPort(a.Port())}
}

func decodeBackend(b bpfBackend) netip.AddrPort {
	return netip.AddrPortFrom(address(b.Ip), hostPort(b.Port))
}
