package lab

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is an anonymous network namespace, held by a file descriptor.
type namespace struct {
	handle netns.NsHandle
	nl     *netlink.Handle
}

// everywhere are the sysctls of all namespaces. IPv4's are copied from the machine, so none is left to it.
// Addresses have to be usable at once, hence no duplicate address detection.
var everywhere = []string{
	"ipv4/conf/all/rp_filter=0",
	"ipv4/conf/default/rp_filter=0",
	"ipv4/conf/all/route_localnet=0",
	"ipv4/conf/default/route_localnet=0",
	"ipv4/conf/all/send_redirects=0",
	"ipv4/conf/default/send_redirects=0",
	"ipv4/conf/all/accept_redirects=0",
	"ipv6/conf/all/disable_ipv6=0",
	"ipv6/conf/default/disable_ipv6=0",
	"ipv6/conf/default/accept_dad=0",
	"ipv6/conf/default/dad_transmits=0",
	"ipv6/conf/default/accept_ra=0",
}

// forwarding are the sysctls of nodes and the router. ICMP errors are not limited: the kernel lets one a second
// through to each client, and a rejected connection would look like a dropped one.
var forwarding = []string{
	"ipv4/ip_forward=1",
	"ipv4/icmp_ratemask=0",
	"ipv6/conf/all/forwarding=1",
	"ipv6/conf/default/forwarding=1",
	"ipv6/icmp/ratelimit=0",
}

// newNamespace makes a namespace with lo up.
func newNamespace(sysctls ...[]string) (*namespace, error) {
	n := &namespace{handle: netns.None()}
	if err := n.create(); err != nil {
		return nil, fmt.Errorf("create network namespace: %w", err)
	}
	if err := n.setUp(sysctls); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *namespace) create() error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer before.Close()
	defer restore(before)
	n.handle, err = netns.New()
	return err
}

func (n *namespace) setUp(sysctls [][]string) error {
	err := n.do(func() error {
		for _, list := range sysctls {
			for _, s := range list {
				if err := setSysctl(s); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n.nl, err = netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	return n.up("lo")
}

// do runs fn on this goroutine, its thread being in the namespace.
func (n *namespace) do(fn func() error) error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("read network namespace: %w", err)
	}
	defer before.Close()
	defer restore(before)
	if err := netns.Set(n.handle); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return fn()
}

// restore brings the thread back. One that cannot go back stays locked and ends with its goroutine.
func restore(ns netns.NsHandle) {
	if netns.Set(ns) == nil {
		runtime.UnlockOSThread()
	}
}

func (n *namespace) close() {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.handle.IsOpen() {
		n.handle.Close()
	}
}

// up brings a link up.
func (n *namespace) up(link string) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set link %s up: %w", link, err)
	}
	return nil
}

// addAddr adds an address, usable at once. An IPv6 address that is not preferred is never chosen as a source.
func (n *namespace) addAddr(link string, p netip.Prefix, preferred bool) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if !preferred {
			a.ValidLft = math.MaxUint32 // for ever, and preferred for no time
		}
		err = n.nl.AddrAdd(l, a)
	}
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link, err)
	}
	return nil
}

// addRoute adds a route by way of gateway, or onto the link itself if there is none.
func (n *namespace) addRoute(link string, dst netip.Prefix, gateway netip.Addr) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
		if gateway.IsValid() {
			r.Gw = gateway.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		err = n.nl.RouteAdd(r)
	}
	if err != nil {
		return fmt.Errorf("add route to %s via %s: %w", dst, link, err)
	}
	return nil
}

// connect makes a veth pair between two namespaces, both ends up.
func connect(a *namespace, aLink string, b *namespace, bLink string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aLink, Namespace: netlink.NsFd(int(a.handle)), TxQLen: 1000},
		PeerName:      bLink,
		PeerNamespace: netlink.NsFd(int(b.handle)),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair %s, %s: %w", aLink, bLink, err)
	}
	return errors.Join(a.up(aLink), b.up(bLink))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setSysctl writes one "path=value" below /proc/sys/net.
func setSysctl(s string) error {
	path, value, _ := strings.Cut(s, "=")
	if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// enslave makes a link a port of a bridge.
func (n *namespace) enslave(link, bridge string) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	b, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if err := n.nl.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("add link %s to bridge %s: %w", link, bridge, err)
	}
	return nil
}
