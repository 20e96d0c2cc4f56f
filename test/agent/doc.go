// Package agent tests the agent as a program: what happens to connections when it is killed and started again, and what
// it says and leaves behind when it cannot start.
package agent
