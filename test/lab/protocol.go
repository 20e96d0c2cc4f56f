package lab

import (
	"encoding/json"
	"net/netip"
	"syscall"
	"time"
)

// A worker is asked and answers by a stream of JSON objects over a socket pair. Calls are served
// concurrently, so replies come in any order and carry the number of their call.
type call struct {
	ID   uint64          `json:"id"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args"`
}

type reply struct {
	ID     uint64          `json:"id"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// The operations of a worker.
const (
	opServe     = "serve"
	opStopServe = "stop-serve"
	opDial      = "dial"
	opLoad      = "load"
	opLoadRead  = "load-read"
	opLoadStop  = "load-stop"
)

// server says where a server is and what it answers.
type server struct {
	Network string         `json:"network"`
	Addr    netip.AddrPort `json:"addr"`
	Name    string         `json:"name,omitempty"`
}

type dialArgs struct {
	Request Request `json:"request"`
	Times   int     `json:"times"`
}

// Request is one connection, or one datagram, and what to send.
type Request struct {
	Network   string         `json:"network"`             // tcp or udp
	Addr      netip.AddrPort `json:"addr"`                // whom to dial
	Source    netip.Addr     `json:"source,omitempty"`    // Optional. Address to bind to.
	Connected bool           `json:"connected,omitempty"` // Connect a UDP socket, instead of only sending from it.
	MappedV4  bool           `json:"mappedV4,omitempty"`  // Dial an IPv4 address from an IPv6 socket, as ::ffff:a.b.c.d.
	Payload   string         `json:"payload,omitempty"`   // Optional. One line to send.
	Timeout   time.Duration  `json:"timeout,omitempty"`   // Optional. Patience with each step; the default is 2 s.
}

// Answer is what became of a [Request].
type Answer struct {
	Backend    string         `json:"backend,omitempty"` // name of the server that answered
	SeenSource netip.AddrPort `json:"seenSource"`        // this client's address as the server saw it
	Peer       netip.AddrPort `json:"peer"`              // the server's address as this client is told it: getpeername, or the sender of the answer

	// Connect is the time connect() took. For UDP it is the time from sending to receiving.
	Connect time.Duration `json:"connect"`

	// Errno is 0, or why there was no answer; a timeout is always ETIMEDOUT. Error says the same in words, with the
	// step that failed.
	Errno syscall.Errno `json:"errno,omitempty"`
	Error string        `json:"error,omitempty"`
}

// Refused says that somebody said no: a reset, or an ICMP port unreachable.
func (a Answer) Refused() bool { return a.Errno == syscall.ECONNREFUSED }

// TimedOut says that nobody said anything.
func (a Answer) TimedOut() bool { return a.Errno == syscall.ETIMEDOUT }

// Unreachable says that the network knew no way.
func (a Answer) Unreachable() bool {
	return a.Errno == syscall.ENETUNREACH || a.Errno == syscall.EHOSTUNREACH
}

// LoadRequest says which connections to make until the load is stopped.
type LoadRequest struct {
	Network string           `json:"network"` // tcp or udp (connected)
	Targets []netip.AddrPort `json:"targets"` // whom to dial, at random
	Workers int              `json:"workers"` // dial concurrently; the default is 1
	Rate    int              `json:"rate"`    // Optional. New connections per second of all workers; 0 is as many as there is time for.
	Timeout time.Duration    `json:"timeout"` // Optional. As in Request.

	// Held connections are made once and send requests all the time. They go to the targets in turn.
	Held     int           `json:"held"`
	Interval time.Duration `json:"interval"` // Optional. Pause between their requests; the default is 10 ms.
}

// LoadResult counts what became of a load.
type LoadResult struct {
	Connects int            `json:"connects"` // new connections that were answered
	Failures int            `json:"failures"` // new connections that were not
	Backends map[string]int `json:"backends"` // who answered new connections
	Slowest  time.Duration  `json:"slowest"`  // longest Connect of the answered ones

	Requests int `json:"requests"` // answered requests on held connections
	Resets   int `json:"resets"`   // held connections that broke, or could not be made

	Errors []string `json:"errors,omitempty"` // the first ten failures and resets
}

// Load is connections being made by a host.
type Load struct {
	host *Host
	id   uint64
}

// Read returns the counts so far.
func (l *Load) Read() (LoadResult, error) {
	var r LoadResult
	return r, l.host.call(opLoadRead, l.id, &r)
}

// Stop ends the load and returns the counts.
func (l *Load) Stop() (LoadResult, error) {
	var r LoadResult
	return r, l.host.call(opLoadStop, l.id, &r)
}
