// Package bench measures the way of an event: from a change of a Service in memory to a kernel that has it, for each
// datapath and at several numbers of Services.
//
//	make bench
//
// The numbers are of one machine and one moment: compare them with each other, not with those of another run.
package bench
