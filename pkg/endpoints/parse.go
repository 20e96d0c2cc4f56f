package endpoints

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// parseAddr reads an IP address as the Service API does: leading zeros in IPv4 are decimal, not octal, and are
// normalised away. IPv4-mapped IPv6 addresses and zones are refused: they would be a second name for the same
// address.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(trimZeros(s))
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", clip(s))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%q is an IPv4-mapped IPv6 address", clip(s))
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone", clip(s))
	}
	return a, nil
}

// parsePrefix reads a CIDR with the leniency of parseAddr. Host bits are dropped.
func parsePrefix(s string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(s, "/")
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR", clip(s))
	}
	a, err := parseAddr(addr)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR: %w", clip(s), err)
	}
	n, err := strconv.ParseUint(bits, 10, 8)
	if err != nil || int(n) > a.BitLen() {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR: the prefix length is not in 0-%d", clip(s), a.BitLen())
	}
	return netip.PrefixFrom(a, int(n)).Masked(), nil
}

// trimZeros removes leading zeros from the dotted parts of s, which netip refuses.
func trimZeros(s string) string {
	if !strings.Contains(s, ".") || len(s) > 64 {
		return s
	}
	head, dotted := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		head, dotted = s[:i+1], s[i+1:]
	}
	parts := strings.Split(dotted, ".")
	for i, p := range parts {
		if t := strings.TrimLeft(p, "0"); t != "" || p == "" {
			parts[i] = t
		} else {
			parts[i] = "0"
		}
	}
	return head + strings.Join(parts, ".")
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// special names the kind of address that means something of the node's own or of the link, or is empty for
// ordinary unicast. A Service or an endpoint at a special address would open it to everybody
// (CVE-2021-25737, CVE-2020-8554).
func special(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a == broadcast:
		return "the broadcast address"
	}
	return ""
}

// parseUnicast is parseAddr for addresses that are not special.
func parseUnicast(s string) (netip.Addr, error) {
	a, err := parseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if kind := special(a); kind != "" {
		return netip.Addr{}, fmt.Errorf("%s is %s", a, kind)
	}
	return a, nil
}

func parseProtocol(p v1.Protocol) (datapath.Protocol, error) {
	switch p {
	case v1.ProtocolTCP, "":
		return datapath.TCP, nil
	case v1.ProtocolUDP:
		return datapath.UDP, nil
	case v1.ProtocolSCTP:
		return datapath.SCTP, nil
	}
	return 0, fmt.Errorf("%q is not one of TCP, UDP, SCTP", clip(string(p)))
}

func parsePort(n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("%d is not in 1-65535", n)
	}
	return uint16(n), nil
}

// clip keeps a hostile value from filling the log.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
