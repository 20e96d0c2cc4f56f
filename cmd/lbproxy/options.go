package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"github.com/lbproxy/lbproxy/pkg/datapath/ebpf"
	"github.com/lbproxy/lbproxy/pkg/datapath/nftables"
	"github.com/lbproxy/lbproxy/pkg/endpoints"
)

// The values of --proxy-mode.
const (
	modeAuto     = "auto"
	modeEBPF     = "ebpf"
	modeNFTables = "nftables"
)

// options are the flags of the agent. Those that are kube-proxy's too have its names and meanings.
type options struct {
	proxyMode    string
	foreignMode  string // what --proxy-mode said if that is a mode of kube-proxy's
	kubeconfig   string
	master       string
	manifests    string
	hostname     string
	clusterCIDRs []string

	detectLocalMode     string
	bridgeInterface     string
	interfacePrefix     string
	masqueradeAll       bool
	masqueradeBit       int
	nodePortAddresses   []string
	localhostNodePorts  bool
	externalIPs         bool
	instance            string
	cgroupRoot, bpffs   string
	logFormat, logLevel string
}

// addInstance adds the flags that say which instance is meant, for every command.
func (o *options) addInstance(f *pflag.FlagSet) {
	f.StringVar(&o.instance, "instance", "", "name of this instance, if several share a machine; it is part of the names of nftables tables and BPF pins")
	f.StringVar(&o.cgroupRoot, "cgroup-root", "", "directory of the cgroup v2 whose sockets are served (default: the root, as mounted)")
	f.StringVar(&o.bpffs, "bpffs", "/sys/fs/bpf", "directory of the BPF file system for pins; it is mounted there if it is not")
	f.IntVar(&o.masqueradeBit, "iptables-masquerade-bit", 14, "bit of the packet mark that asks for masquerading, 0 to 31")
}

func (o *options) addAgent(f *pflag.FlagSet) {
	f.StringVar(&o.proxyMode, "proxy-mode", modeAuto, `"auto" (sockets by eBPF, and nftables behind it), "ebpf" (the same, but fail where eBPF cannot work) or "nftables" alone`)
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file with the address and credentials of the API server (default: in-cluster)")
	f.StringVar(&o.master, "master", "", "address of the API server, overrides the one in the kubeconfig")
	f.StringVar(&o.manifests, "manifests", "", "watch Services, EndpointSlices and the Node in the YAML and JSON files of this directory instead of an API server")
	f.StringVar(&o.hostname, "hostname-override", "", "name of this node (default: the host name)")
	f.StringSliceVar(&o.clusterCIDRs, "cluster-cidr", nil, "ranges of pod addresses, one per IP family; a source outside of them is masqueraded on its way to a ClusterIP")
	f.StringVar(&o.detectLocalMode, "detect-local-mode", string(endpoints.DetectClusterCIDR), "how local pods are told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	f.StringVar(&o.bridgeInterface, "pod-bridge-interface", "", "bridge that local pods are attached to, for --detect-local-mode=BridgeInterface")
	f.StringVar(&o.interfacePrefix, "pod-interface-name-prefix", "", "prefix of the interfaces of local pods, for --detect-local-mode=InterfaceNamePrefix")
	f.BoolVar(&o.masqueradeAll, "masquerade-all", false, "masquerade every connection to a ClusterIP")
	f.StringSliceVar(&o.nodePortAddresses, "nodeport-addresses", nil, `local addresses that serve NodePorts: CIDRs or "primary", the addresses of the Node (default primary)`)
	f.BoolVar(&o.localhostNodePorts, "iptables-localhost-nodeports", true, "serve NodePorts on 127.0.0.1 and ::1 too, where the eBPF hook is attached")
	f.BoolVar(&o.externalIPs, "external-ips", true, "serve spec.externalIPs of Services")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

var instanceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// validate checks and completes the options.
func (o *options) validate() error {
	switch o.proxyMode {
	case modeAuto, modeEBPF, modeNFTables:
	case "", "iptables", "ipvs":
		o.foreignMode, o.proxyMode = o.proxyMode, modeAuto
	default:
		return fmt.Errorf("--proxy-mode %q is not auto, ebpf or nftables", o.proxyMode)
	}
	if err := o.validateInstance(); err != nil {
		return err
	}
	if o.manifests != "" && (o.kubeconfig != "" || o.master != "") {
		return fmt.Errorf("--manifests and --kubeconfig or --master exclude each other: choose one source of Services")
	}
	if o.manifests != "" {
		if info, err := os.Stat(o.manifests); err != nil || !info.IsDir() {
			return fmt.Errorf("--manifests %s is not a directory that can be read", o.manifests)
		}
	}
	if o.hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("get host name (use --hostname-override): %w", err)
		}
		o.hostname = name
	}
	o.hostname = strings.ToLower(strings.TrimSpace(o.hostname))
	return nil
}

func (o *options) validateInstance() error {
	if o.instance != "" && !instanceName.MatchString(o.instance) {
		return fmt.Errorf("--instance %q: use up to 32 lower-case letters, digits and dashes", o.instance)
	}
	if o.masqueradeBit < 0 || o.masqueradeBit > 31 {
		return fmt.Errorf("--iptables-masquerade-bit %d is not between 0 and 31", o.masqueradeBit)
	}
	return nil
}

// name is what tables and pins are called.
func (o *options) name() string {
	if o.instance == "" {
		return "lbproxy"
	}
	return "lbproxy-" + o.instance
}

func (o *options) endpoints() (endpoints.Config, error) {
	c := endpoints.Config{
		NodeName: o.hostname, DetectLocal: endpoints.DetectLocalMode(o.detectLocalMode),
		BridgeInterface: o.bridgeInterface, InterfaceNamePrefix: o.interfacePrefix,
		MasqueradeAll: o.masqueradeAll, NodePortAddresses: o.nodePortAddresses,
		LocalhostNodePorts: o.localhostNodePorts, ExternalIPs: o.externalIPs,
	}
	for _, s := range o.clusterCIDRs {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return c, fmt.Errorf("--cluster-cidr %q is not a CIDR like 10.244.0.0/16", s)
		}
		c.ClusterCIDRs = append(c.ClusterCIDRs, p.Masked())
	}
	return c, c.Validate()
}

func (o *options) ebpf(log *slog.Logger) ebpf.Options {
	return ebpf.Options{CgroupRoot: o.cgroupRoot, BPFFS: o.bpffs, PinDir: filepath.Join(o.bpffs, o.name()), Log: log}
}

func (o *options) nftables(log *slog.Logger) nftables.Options {
	return nftables.Options{Table: o.name(), MasqueradeMark: 1 << o.masqueradeBit, Log: log}
}

// logger returns the logger the flags ask for.
func (o *options) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", o.logLevel)
	}
	h := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, h)), nil
	}
	return nil, fmt.Errorf("--log-format %q is not text or json", o.logFormat)
}
