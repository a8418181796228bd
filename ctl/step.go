package ctl

// atStep is called at each of Steps. A build with the tag killpoints stands
// still there, for tests that end the processes at every step of a start.
var atStep = func(state, step string) {}
