/* What the files of libsandboxd share. Nothing here is for users of the library. */
#ifndef SBX_INTERNAL_H
#define SBX_INTERNAL_H

#include "data.h"
#include "layout.h"
#include "ring.h"
#include "rules.h"
#include "state.h"

#endif
