// Package demo is `lbproxy demo`: it runs the agent on the Services of package examples in a laboratory of network
// namespaces, dials every frontend from every kind of client, changes the Services while connections run, and shows what
// became of all of them.
//
// The flow is values, then I/O, then values. The application (app.go) says which pods there are and which frontends, and who has to
// answer at each of them, in words of the demo's own: it is not computed by the code it checks. A stage (stage.go) is a world in which
// one agent runs. What was dialed there becomes a [Report] (judge.go), which is written as a table (render.go) or as JSON.
//
// [Run] returns an error if anything was not as it has to be, and in any case leaves nothing behind.
package demo
