// A record in shared data that all VMs of the plugin change together, each change by compare and swap.
#ifndef SHARED_RECORD_H
#define SHARED_RECORD_H

#include "filter.h"

// More than enough: in each round that one VM loses, another has won.
enum { UPDATE_TRIES = 1000 };

// A compare-and-swap number that no value has. Who sets with it creates the key if it is not there, and loses against a
// VM that was quicker. Zero would overwrite what the other has just counted.
#define CREATE UINT32_MAX

// Changes a record (all zeros at first). Returns whether there is something to write. May run more than once.
typedef bool change_record(void *record, void *argument);

// True if the change is in force. False if shared data is full, away, or denied; the caller then decides what is safer.
static inline bool update_record(struct text key, void *record, size_t size, change_record *change, void *argument) {
    for (int attempt = 0; attempt < UPDATE_TRIES; attempt++) {
        char *value = NULL;
        size_t got = 0;
        uint32_t cas = 0;
        arena_reset();
        uint32_t status = proxy_get_shared_data(SPREAD(key), &value, &got, &cas);
        if (status != STATUS_OK && status != STATUS_NOT_FOUND) return false;
        for (size_t i = 0; i < size; i++) ((char *)record)[i] = status == STATUS_OK && got == size ? value[i] : 0;
        if (!change(record, argument)) return true;
        status = proxy_set_shared_data(SPREAD(key), record, size, status == STATUS_OK ? cas : CREATE);
        if (status == STATUS_OK) return true;
        if (status != STATUS_CAS_MISMATCH) return false;
    }
    return false;
}

#endif
