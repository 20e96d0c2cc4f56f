package endpoints

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// DetectLocalMode is how packets of this node's pods are told from all others, in kube-proxy's words.
type DetectLocalMode string

// The modes. The empty mode means DetectClusterCIDR.
const (
	DetectClusterCIDR         DetectLocalMode = "ClusterCIDR"         // source in Config.ClusterCIDRs
	DetectNodeCIDR            DetectLocalMode = "NodeCIDR"            // source in the Node's spec.podCIDRs
	DetectBridgeInterface     DetectLocalMode = "BridgeInterface"     // arrives on Config.BridgeInterface
	DetectInterfaceNamePrefix DetectLocalMode = "InterfaceNamePrefix" // arrives on an interface whose name begins so
)

// nodePortPrimary is the word in Config.NodePortAddresses for the node's own addresses.
const nodePortPrimary = "primary"

// Config is what the administrator decides.
type Config struct {
	// NodeName is the name of the own Node. Endpoints whose nodeName equals it are local. If it is empty, the
	// Node that a source hands over names it; without any, nothing is local.
	NodeName string

	DetectLocal         DetectLocalMode
	ClusterCIDRs        []netip.Prefix
	BridgeInterface     string
	InterfaceNamePrefix string

	// MasqueradeAll masquerades every connection to a ClusterIP.
	MasqueradeAll bool

	// NodePortAddresses are the local addresses NodePorts answer on: CIDRs, or the word "primary" for the
	// addresses of the Node object. Empty means primary. As in kube-proxy, a family that none of them names
	// gets NodePorts on all its addresses.
	NodePortAddresses []string
	// LocalhostNodePorts adds 127.0.0.1 and ::1 to them.
	LocalhostNodePorts bool

	// ExternalIPs says whether spec.externalIPs of Services are served (CVE-2020-8554).
	ExternalIPs bool
}

// Validate reports everything that is wrong with the configuration. A Store ignores what Validate reports.
func (c *Config) Validate() error {
	_, faults := c.nodePortPrefixes()
	var errs []error
	for _, f := range append(faults, c.detectFaults()...) {
		errs = append(errs, fmt.Errorf("read config: %s: %s", f.field, f.text))
	}
	return errors.Join(errs...)
}

func (c *Config) detectFaults() []fault {
	switch c.DetectLocal {
	case "", DetectClusterCIDR, DetectNodeCIDR:
	case DetectBridgeInterface:
		if c.BridgeInterface == "" {
			return []fault{{"bridgeInterface", "is empty, but detectLocalMode is BridgeInterface"}}
		}
	case DetectInterfaceNamePrefix:
		if strings.TrimRight(c.InterfaceNamePrefix, "*+") == "" {
			return []fault{{"interfaceNamePrefix", "is empty, but detectLocalMode is InterfaceNamePrefix"}}
		}
	default:
		return []fault{faultf("detectLocalMode", "%q is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix", c.DetectLocal)}
	}
	return nil
}

// nodePortPrefixes returns the CIDRs of NodePortAddresses; the word primary is left out.
func (c *Config) nodePortPrefixes() (prefixes []netip.Prefix, faults []fault) {
	for i, s := range c.NodePortAddresses {
		if s == nodePortPrimary {
			continue
		}
		p, err := parsePrefix(s)
		if err != nil {
			faults = append(faults, faultf(fmt.Sprintf("nodePortAddresses[%d]", i), "%v", err))
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, faults
}

func (c *Config) nodePortsOnPrimary() bool {
	return len(c.NodePortAddresses) == 0 || slices.Contains(c.NodePortAddresses, nodePortPrimary)
}

// localPods returns how pods are told, given the Node's pod CIDRs.
func (c *Config) localPods(podCIDRs []netip.Prefix) datapath.LocalPods {
	if len(c.detectFaults()) > 0 {
		return datapath.LocalPods{}
	}
	switch c.DetectLocal {
	case DetectNodeCIDR:
		return datapath.LocalPods{CIDRs: podCIDRs}
	case DetectBridgeInterface:
		return datapath.LocalPods{Interfaces: []string{c.BridgeInterface}}
	case DetectInterfaceNamePrefix:
		return datapath.LocalPods{Interfaces: []string{strings.TrimRight(c.InterfaceNamePrefix, "*+") + "*"}}
	}
	return datapath.LocalPods{CIDRs: c.ClusterCIDRs}
}
